"""Checkpoints: whole or absent, exact, and only for the run they belong to."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch
import yaml

from fedloom.errors import UserError
from fedloom.options.fed import FedConfig
from fedloom.options.parsing import parse
from fedloom.runs.checkpoint import (
    drop_older_states,
    drop_unproven_states,
    intact_checkpoint,
    latest_checkpoint,
    load_state,
    save_checkpoint,
)
from fedloom.runs.files import CannotWrite
from fedloom.runs.run_folder import Opened, check_same_run, opened, write_run_config


def write_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}")


def save(folder: Path, round_: int, **tensors: torch.Tensor) -> Path:
    return save_checkpoint(
        folder, round_, write_adapter=write_adapter, tensors=tensors, state={"round": round_}
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tensors_and_state_come_back_bit_by_bit(tmp_path):
    bank = torch.randn(3, 2, 5)
    tensors = {
        "whole": bank,
        "view": bank[1],
        "again": bank,
        "transposed": bank.transpose(0, 2),
        "half": torch.tensor([1.0, float("nan"), float("-inf")]).bfloat16(),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "count": torch.tensor([2**62, -1]),
        "empty": torch.empty(0, 4),
        "trained": torch.ones(2, requires_grad=True),
    }
    state = {
        "best": 0.1 + 0.2,
        "history": [1e-300, None],
        "by_client": {"3": [1, 2]},
        "name": "é",
        "round": 7,
    }
    path = save_checkpoint(tmp_path, 7, write_adapter=write_adapter, tensors=tensors, state=state)
    assert path == tmp_path / "checkpoints" / "round-000007" == latest_checkpoint(tmp_path)
    loaded, loaded_state = load_state(path)
    assert loaded_state == state
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def states(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[6:]) for path in folder.glob("checkpoints/*/state"))


def test_older_checkpoints_keep_their_adapter_and_lose_their_state_once_the_new_one_is_proven(tmp_path):
    for round_ in (9, 100, 200, 1000000):
        save(tmp_path, round_, w=torch.tensor([float(round_)]))
    assert states(tmp_path) == [9, 1000000], "nobody has said that one after 9 is of use"
    drop_older_states(tmp_path, 1000003)
    checkpoints = tmp_path / "checkpoints"
    assert names(checkpoints) == ["round-000009", "round-000100", "round-000200", "round-1000000"]
    assert names(checkpoints / "round-000009") == ["adapter_config.json", "checksums.json"]
    assert names(checkpoints / "round-1000000") == ["adapter_config.json", "checksums.json", "state"]
    assert latest_checkpoint(tmp_path) == checkpoints / "round-1000000"


def test_what_is_proven_of_an_older_checkpoint_says_nothing_of_a_newer_one(tmp_path):
    for round_ in (1, 2):
        save(tmp_path, round_, w=torch.ones(1))
    drop_older_states(tmp_path, 1)
    assert states(tmp_path) == [1, 2]


def test_a_state_that_leads_nowhere_goes_and_the_proven_one_stays(tmp_path):
    for round_ in (3, 4):
        save(tmp_path, round_, w=torch.ones(1))
    drop_unproven_states(tmp_path, 3)
    assert states(tmp_path) == [3] and (tmp_path / "checkpoints" / "round-000004").is_dir()
    drop_unproven_states(tmp_path, 2)
    assert latest_checkpoint(tmp_path) is None


def test_a_save_that_fails_leaves_the_last_checkpoint_alone(tmp_path):
    def fail(path: Path) -> None:
        write_adapter(path)
        raise OSError("disk full")

    good = save(tmp_path, 1, w=torch.ones(1))
    with pytest.raises(CannotWrite, match="disk full"):
        save_checkpoint(tmp_path, 2, write_adapter=fail, tensors={"w": torch.zeros(1)}, state={})
    assert latest_checkpoint(tmp_path) == good
    assert load_state(good)[0]["w"].item() == 1
    assert names(tmp_path / "checkpoints") == ["round-000001"], "a full disk needs the room"


def test_a_full_disk_is_told_with_the_file_the_reason_and_what_to_do(tmp_path):
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "", str(path / "adapter_model.safetensors"))

    with pytest.raises(CannotWrite) as caught:
        save_checkpoint(tmp_path, 2, write_adapter=fail, tensors={}, state={})
    assert str(caught.value) == (
        f"{tmp_path}/checkpoints/round-000002/adapter_model.safetensors cannot be written "
        "(No space left on device); make room on the disk, then go on with --resume"
    )


@pytest.mark.parametrize("stray", [".tmp-round-000004", ".tmp-x", "round-000007", "round-x"])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_stray_files_and_folders_are_in_nobodys_way(tmp_path, stray, make):
    save(tmp_path, 1, w=torch.ones(1))
    make(tmp_path / "checkpoints" / stray)
    assert latest_checkpoint(tmp_path) == save(tmp_path, 1, w=torch.ones(1))
    assert latest_checkpoint(tmp_path) != save(tmp_path, 7, w=torch.ones(1)) == latest_checkpoint(tmp_path)


def test_the_same_round_twice_stays_as_it_was(tmp_path):
    save(tmp_path, 4, w=torch.ones(1))
    path = save(tmp_path, 4, w=torch.zeros(1))
    assert load_state(path)[0]["w"].item() == 1


def test_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "round-000003").mkdir(parents=True)  # an adapter without a state
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["state/tensors.safetensors", "state/state.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["{", "[]", "null", "", "{}"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path, name, damage):
    path = save(tmp_path, 1, w=torch.ones(1))
    (path / name).write_text(damage)
    with pytest.raises(UserError, match=r"round-000001 .*the checkpoint is damaged.*remove this folder"):
        load_state(path)


def test_a_single_flipped_bit_is_noticed(tmp_path):
    path = save(tmp_path, 1, w=torch.ones(4)) / "state" / "tensors.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="its content is not what was written"):
        intact_checkpoint(tmp_path)


def test_a_run_goes_on_from_the_state_before_one_that_is_damaged(tmp_path, caplog):
    good = save(tmp_path, 1, w=torch.ones(1))
    (save(tmp_path, 2, w=torch.ones(1)) / "state" / "state.json").write_text("{}")
    assert intact_checkpoint(tmp_path) == good
    assert "round-000002 is not as fedloom wrote it" in caplog.text and "round-000001" in caplog.text
    save(tmp_path, 2, w=torch.zeros(1))
    assert load_state(tmp_path / "checkpoints" / "round-000002")[0]["w"].item() == 0


def config_in(tmp_path: Path, **values) -> tuple[Path, FedConfig]:
    """A run folder with its config.yaml."""
    config = FedConfig(out_dir=str(tmp_path), exp_name="mine", **values)
    folder = tmp_path / "mine"
    folder.mkdir(parents=True)
    write_run_config(folder, config, {"torch": "2.13.0"}, "cpu", {"training data": "2 examples"})
    return folder, config


def begin(folder: Path, **values) -> Opened:
    config = FedConfig(out_dir=str(folder.parent), exp_name=folder.name, **values)
    with opened(folder, config) as run:
        return run


def test_config_yaml_holds_every_option_but_the_token(tmp_path):
    folder, config = config_in(tmp_path, token="hf_secret", lr=1e-10, target_modules="q_proj")
    text = (folder / "config.yaml").read_text()
    assert "hf_secret" not in text
    content = yaml.safe_load(text)
    record = content.pop("run")
    assert len(record.pop("options")) == 32, "a digest of the options, so that none changes unseen"
    assert record == {
        "device": "cpu",
        "versions": {"torch": "2.13.0"},
        "inputs": {"training data": "2 examples"},
    }
    expected = dataclasses.asdict(config)
    for name in ("token", "config", "resume"):
        assert name in expected
        del expected[name]
    assert content == expected


def test_config_yaml_can_be_given_to_config(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder, config = config_in(tmp_path, lr=1e-10, client_num=9, wave_tokens=512)
    again = parse(FedConfig, ["--config", str(folder / "config.yaml")], prog="fedloom fed")
    assert dataclasses.replace(again, config=None) == config


def test_a_folder_with_another_run_is_refused(tmp_path):
    folder, _ = config_in(tmp_path)
    with pytest.raises(
        UserError, match=r"mine: holds another run; add --resume .* or take another --exp_name"
    ):
        begin(folder)


def test_a_folder_without_a_run_may_exist(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert begin(tmp_path / "mine").checkpoint is None


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/mine cannot be written \(Not a directory\)"):
        begin(tmp_path / "file" / "mine")


def test_resume_needs_a_run_and_finds_its_newest_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no run to resume here"):
        begin(tmp_path / "mine", resume=True)
    assert not (tmp_path / "mine").exists()
    folder, _ = config_in(tmp_path)
    assert begin(folder, resume=True).checkpoint is None  # from the beginning
    path = save(folder, 5, w=torch.ones(1))
    run = begin(folder, resume=True)
    assert run.checkpoint == path and run.inputs == {"training data": "2 examples"}


def test_two_starts_in_one_folder_are_one_run_and_one_message(tmp_path):
    folder, config = config_in(tmp_path)
    with (
        opened(folder, dataclasses.replace(config, resume=True)),
        pytest.raises(UserError, match=rf"process {os.getpid()} on .*, since 20\d\d-.* is writing here"),
    ):
        begin(folder, resume=True)
    assert begin(folder, resume=True).config.resume, "who has ended holds nothing"


def test_auto_is_what_it_was_when_the_run_began(tmp_path):
    folder, _ = config_in(tmp_path, dtype="float32", wave_tokens=512)
    run = begin(folder, resume=True, dtype="auto", wave_tokens="auto")
    assert (run.config.dtype, run.config.wave_tokens, run.config.device) == ("float32", 512, "auto")
    with pytest.raises(UserError, match="dtype was float32, now bfloat16"):
        begin(folder, resume=True, dtype="bfloat16")


def test_resume_refuses_options_that_change_the_mathematics(tmp_path):
    folder, config = config_in(tmp_path, lr=0.5)
    check_same_run(folder, config)
    free = {"max_steps": 7, "report_to": "none", "device": "cuda:0", "wave_tokens": 64, "patience": 0}
    check_same_run(folder, dataclasses.replace(config, resume=True, token="hf_x", **free))
    with pytest.raises(UserError) as caught:
        check_same_run(folder, dataclasses.replace(config, lr=0.25, val_steps=10, max_steps=7))
    message = str(caught.value)
    assert "lr was 0.5, now 0.25" in message and "val_steps was 100, now 10" in message
    assert "max_steps" not in message


def test_resume_by_name_alone_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder, config = config_in(tmp_path, lr=0.5, data_name="arithmetic", quantize="none", lora_dropout=0.0)
    argv = ["--out_dir", str(tmp_path), "--exp_name", "mine", "--resume"]
    resumed = parse(FedConfig, argv, prog="fedloom fed")
    assert dataclasses.replace(resumed, resume=False) == config
    check_same_run(folder, resumed)
