"""Run folders with one damaged file, read by the commands that read them: `--resume`, `report`, `eval`."""

from pathlib import Path

import pytest
from damage import DAMAGES, copied, files_of, make_runs
from fuzzing import damaged, fuzzed
from hypothesis import strategies as st

from fedloom.commands.cli import main
from fedloom.errors import UserError

COMMANDS = (
    "{name} --exp_name {name} --out_dir {folder} --resume --{rounds} 3",
    "report {run} -o {folder}/page.html",
    "eval --adapter {run} --max_new_tokens 2 --limit 2 --dtype float32 --output_path {folder}/eval",
)
RUNS: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    """The whole runs, made before the time of any example begins."""
    place = tmp_path_factory.mktemp("place")
    make_runs(place)
    RUNS[:] = [place / "runs"]


@fuzzed(
    name=st.sampled_from(["fed", "dfl"]),
    command=st.sampled_from(COMMANDS),
    file=st.integers(0, 99),
    data=st.data(),
)
def test_one_damaged_file(folder, name, command, file, data):
    run = copied(RUNS[0] / name, folder)
    names = files_of(run)
    path = run / names[file % len(names)]
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from([*DAMAGES, "drawn", "gone"]))
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(data.draw(damaged(whole)) if kind == "drawn" else DAMAGES[kind](whole))
    rounds = {"fed": "max_steps", "dfl": "num_rounds"}[name]
    status = main(command.format(name=name, folder=folder, run=run, rounds=rounds).split())
    assert status in (0, 2), status
    if status == 2:
        raise UserError("told")
