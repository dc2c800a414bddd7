"""From the folder of a `fedloom compare` to a file of results, of any kind."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process

prepare_process()

import torch  # noqa: E402
from machine import describe_machine, versions  # noqa: E402

from fedloom.errors import UserError  # noqa: E402
from fedloom.options.compare import read_plan  # noqa: E402
from fedloom.runs.files import write_atomically  # noqa: E402
from fedloom.runs.record import RunRecord, read_run  # noqa: E402

Runs = Sequence[tuple[str, RunRecord]]
"""Runs of a comparison, in its order, each with its setting in words."""


def begun_runs(config: Path, folder: Path) -> Runs:
    """The runs of a comparison that have done a round, whether or not they have come to their end.

    Raises:
        UserError: There are none.
    """
    runs = []
    for planned in read_plan(config).runs:
        try:
            runs.append((planned.label, read_run(folder / planned.name, evaluation=False)))
        except UserError:  # it is not there, or has no row yet
            continue
    if not any(run.rounds for _, run in runs):
        raise UserError(f"{folder}: no run has done a round; give the comparison's --out_dir")
    return [(label, run) for label, run in runs if run.rounds]


def finished_runs(config: Path, folder: Path) -> Runs:
    """The runs of a comparison that have come to their end.

    Raises:
        UserError: There are none.
    """
    finished = [(label, run) for label, run in begun_runs(config, folder) if run.finished]
    if not finished:
        raise UserError(f"{folder}: no run has come to its end; give the comparison's --out_dir")
    return finished


def write_result(
    kind: str,
    about: str | None,
    found_in: Callable[[Path, Runs], dict[str, Any]],
    arguments: list[str] | None,
    runs_in: Callable[[Path, Path], Runs] = finished_runs,
) -> int:
    """Be the command that makes a result of a comparison. Returns the exit status.

    Args:
        kind: Of result, for `tables`.
        about: The help.
        found_in: Makes of the comparison's config and runs what stands in the file.
        arguments: The command line; None: the process's own.
        runs_in: Which runs count, of the comparison's config and folder.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path, help="file of the comparison")
    parser.add_argument("folder", type=Path, help="its --out_dir")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--machine_of",
        type=Path,
        help="another result of the machine that made the runs; else: this one",
    )
    options = parser.parse_args(arguments)
    try:
        runs = runs_in(options.config, options.folder)
        found = found_in(options.config, runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    origin = {
        "kind": kind,
        "command": f"fedloom compare configs/compare/{options.config.name}",
        "machine": _machine(options.machine_of, runs[0][1].device),
        "versions": {name: runs[0][1].versions.get(name, number) for name, number in versions().items()},
        "date": date.today().isoformat(),
    }
    write_atomically(options.out, json.dumps(origin | found, indent=1) + "\n")
    return 0


def _machine(elsewhere: Path | None, device: str) -> dict[str, Any]:
    if elsewhere is None:
        return describe_machine(torch.device("cpu"))
    machine = json.loads(elsewhere.read_text(encoding="utf-8"))["machine"]
    return {name: value for name, value in machine.items() if name != "gpu" or device != "cpu"}
