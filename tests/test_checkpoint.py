"""Checkpoints: whole or absent, exact, and only for the run they belong to."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from fedloom.config import FedConfig, UserError
from fedloom.observe.checkpoint import (
    check_same_run,
    latest_checkpoint,
    load_state,
    prepare_run_folder,
    save_checkpoint,
    write_run_config,
)
from fedloom.parsing import parse


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
    state = {"best": 0.1 + 0.2, "history": [1e-300, None], "by_client": {"3": [1, 2]}, "name": "é"}
    path = save_checkpoint(tmp_path, 7, write_adapter=write_adapter, tensors=tensors, state=state)
    assert path == tmp_path / "checkpoints" / "round-000007" == latest_checkpoint(tmp_path)
    loaded, loaded_state = load_state(path)
    assert loaded_state == state
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_older_checkpoints_keep_their_adapter_and_lose_their_state(tmp_path):
    for round_ in (9, 100, 1000000):
        save(tmp_path, round_, w=torch.tensor([float(round_)]))
    checkpoints = tmp_path / "checkpoints"
    assert names(checkpoints) == ["round-000009", "round-000100", "round-1000000"]
    assert names(checkpoints / "round-000009") == ["adapter_config.json"]
    assert names(checkpoints / "round-1000000") == ["adapter_config.json", "state"]
    assert latest_checkpoint(tmp_path) == checkpoints / "round-1000000"


def test_a_save_that_fails_leaves_the_last_checkpoint_alone(tmp_path):
    def fail(path: Path) -> None:
        write_adapter(path)
        raise OSError("disk full")

    good = save(tmp_path, 1, w=torch.ones(1))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, write_adapter=fail, tensors={"w": torch.zeros(1)}, state={})
    assert latest_checkpoint(tmp_path) == good
    assert load_state(good)[0]["w"].item() == 1
    # The next save sweeps away what the failed one left.
    assert any(name.startswith(".tmp-") for name in names(tmp_path / "checkpoints"))
    save(tmp_path, 3, w=torch.ones(1))
    assert names(tmp_path / "checkpoints") == ["round-000001", "round-000003"]


def test_the_newest_counts_when_a_kill_left_an_older_state(tmp_path):
    for round_ in (999999, 1000000):
        (tmp_path / "checkpoints" / f"round-{round_}" / "state").mkdir(parents=True)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "round-1000000"
    save(tmp_path, 1000001, w=torch.ones(1))
    states = sorted(path.parent.name for path in tmp_path.glob("checkpoints/*/state"))
    assert states == ["round-1000001"]


def test_the_same_round_twice_stays_as_it_was(tmp_path):
    save(tmp_path, 4, w=torch.ones(1))
    path = save(tmp_path, 4, w=torch.zeros(1))
    assert load_state(path)[0]["w"].item() == 1


def test_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "round-000003").mkdir(parents=True)  # an adapter without a state
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    path = save(tmp_path, 1, w=torch.ones(1))
    (path / "state" / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"round-000001: the checkpoint is damaged"):
        load_state(path)


def config_in(tmp_path: Path, **values) -> tuple[Path, FedConfig]:
    """A run folder with its config.yaml."""
    config = FedConfig(out_dir=str(tmp_path), exp_name="mine", **values)
    folder = tmp_path / "mine"
    assert prepare_run_folder(folder, resume=False) is None
    write_run_config(folder, config, {"torch": "2.13.0"}, "cpu")
    return folder, config


def test_config_yaml_holds_every_option_but_the_token(tmp_path):
    folder, config = config_in(tmp_path, token="hf_secret", lr=1e-10, target_modules="q_proj")
    text = (folder / "config.yaml").read_text()
    assert "hf_secret" not in text
    content = yaml.safe_load(text)
    assert content.pop("run") == {"device": "cpu", "versions": {"torch": "2.13.0"}}
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
        prepare_run_folder(folder, resume=False)


def test_a_folder_without_a_run_may_exist(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert prepare_run_folder(tmp_path / "mine", resume=False) is None


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        prepare_run_folder(tmp_path / "file" / "mine", resume=False)


def test_resume_needs_a_run_and_finds_its_newest_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no run to resume here"):
        prepare_run_folder(tmp_path / "mine", resume=True)
    assert not (tmp_path / "mine").exists()
    folder, _ = config_in(tmp_path)
    assert prepare_run_folder(folder, resume=True) is None  # from the beginning
    path = save(folder, 5, w=torch.ones(1))
    assert prepare_run_folder(folder, resume=True) == path


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
