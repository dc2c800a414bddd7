"""Whatever happens to a file of a run's folder, whoever reads it goes on or says which file it is."""

from pathlib import Path

import pytest
from damage import DAMAGES, copied, files_of, make_runs
from safetensors.torch import load_file, save_file

from fedloom import FedConfig, UserError, run_fed
from fedloom.commands.cli import COMMANDS
from fedloom.evaluation.adapter_tensors import read_row
from fedloom.evaluation.saved_adapters import find_adapters, options_of_run, read_config
from fedloom.options.parsing import parse
from fedloom.report.groups import group_runs
from fedloom.report.page import page
from fedloom.runs.checkpoint import load_state
from fedloom.runs.metrics import MetricsLog
from fedloom.runs.record import read_run
from fedloom.runs.run_folder import opened


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    make_runs(place)
    return place


def resumed(run):
    """What `--resume` reads before it trains."""
    words = f"--out_dir {run.parent} --exp_name {run.name} --resume"
    config = parse(COMMANDS[run.name].config_class, words.split(), prog="fedloom")
    with opened(run, config) as found:
        state = load_state(found.checkpoint)[1] if found.checkpoint else {"round": None}
        MetricsLog(run, "none", state["round"]).close()


def reported(run):
    assert "</html>" in page(group_runs([read_run(run)]), "")


def judged(run):
    for adapter in find_adapters([str(run)]):
        read_config(adapter.folder)
        read_row(adapter.folder)
    options_of_run(run)


READERS = {"resumed": resumed, "reported": reported, "judged": judged}
FILES = {
    "adapter_config.json": {"judged"},
    "adapter_model.safetensors": {"judged"},
    "checksums.json": {"judged", "resumed"},
    "state.json": {"resumed"},
    "tensors.safetensors": {"resumed"},
    "clients.json": {"reported"},
    "config.yaml": {"judged", "reported", "resumed"},
    "eval.json": {"reported"},
    "predictions.jsonl": {"reported"},
    "metrics.jsonl": {"reported", "resumed"},
    "summary.json": {"reported"},
}
"""Who must look at which file; nobody else may mind what has become of it."""


@pytest.mark.parametrize(
    "name, damage",
    [
        *(("fed", damage) for damage in ("half", "an object", "null", "binary", "huge numbers")),
        *(("dfl", damage) for damage in ("bits", "values of another kind")),
    ],
)
def test_a_damaged_file_is_named(place, tmp_path, name, damage):
    """Some damages of all that `make fuzz` does."""
    for file in files_of(place / "runs" / name):
        run = copied(place / "runs" / name, tmp_path)
        (run / file).write_bytes(DAMAGES[damage]((run / file).read_bytes()))
        must = FILES.get((run / file).name, set())
        for reader in READERS if damage == "binary" else must:
            try:
                READERS[reader](run)
            except UserError as error:
                told = str(error)
                assert str(run) in told and "\n" not in told, (file, reader, told)
                assert reader in must, (file, reader, told)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "tensors.safetensors", "state.json"])
def test_no_flipped_bit_of_a_checkpoint_is_overlooked(place, tmp_path, file):
    (reader,) = FILES[file]
    run = copied(place / "runs" / "dfl", tmp_path)
    path = max(run.rglob(file))
    whole = path.read_bytes()
    for byte in range(0, len(whole), max(1, len(whole) // 3)):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        with pytest.raises(UserError, match="is not as fedloom wrote it"):
            READERS[reader](run)
    path.write_bytes(whole)
    READERS[reader](run)


@pytest.mark.parametrize(
    "stray", [".tmp-config.yaml", "checkpoints/.tmp-round-000003", "checkpoints/round-9"]
)
@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.mkdir()])
def test_strays_are_in_nobodys_way(place, tmp_path, stray, make):
    run = copied(place / "runs" / "fed", tmp_path)
    make(run / stray)
    for read in READERS.values():
        read(run)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "checkpoints"])
def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(place, tmp_path, name):
    run = copied(place / "runs" / "fed", tmp_path)
    (run / name).rename(run / "aside")
    (Path.touch if name == "checkpoints" else Path.mkdir)(run / name)
    for read in READERS.values():
        try:
            read(run)
        except UserError as error:
            assert str(run) in str(error)


def test_a_state_of_another_shape_is_refused(place, tmp_path):
    """As of a run with another rank, whose checkpoint was put here."""
    run = copied(place / "runs" / "fed", tmp_path)
    (path,) = run.rglob("tensors.safetensors")
    tensors = load_file(path)
    first = max(tensors, key=lambda name: tensors[name].numel())
    save_file(tensors | {first: tensors[first][:1].clone()}, path)
    (path.parent.parent / "checksums.json").unlink()  # as of a version that wrote none
    options = read_run(run).options | {"out_dir": str(tmp_path), "resume": True, "max_steps": 3}
    with pytest.raises(UserError, match=rf"the checkpoint is damaged: {first}: it is float32"):
        run_fed(FedConfig(**options))
