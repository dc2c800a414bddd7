"""Runs of several configs with several seeds, kept in one file, so that an interrupted comparison goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedloom.runs.files import write_atomically

Run = dict[str, Any]


def run_missing(
    out: Path,
    kind: str,
    command: str,
    configs: Sequence[Path],
    seeds: Sequence[int],
    run_once: Callable[[Path, int], Run],
) -> None:
    """Run every config with every seed, those that stand in ``out`` already left out.

    Several processes may fill one file, each with configs or seeds of its own.

    Args:
        out: The file with all runs.
        kind: Of result, for `tables`.
        command: What makes such a file, as a reader would type it.
        configs: Files of options; a run goes by the file's name.
        seeds: Of the runs.
        run_once: ``(config, seed) -> run``, with "seed", "machine", "versions" and "date".
    """
    for seed in seeds:
        for path in configs:
            if not any(run["seed"] == seed for run in _runs(out).get(path.stem, [])):
                _add(out, {"kind": kind, "command": command}, path.stem, run_once(path, seed))
                print(path.stem, seed, flush=True)


def _runs(out: Path) -> dict[str, list[Run]]:
    return json.loads(out.read_text(encoding="utf-8"))["runs"] if out.is_file() else {}


def _add(out: Path, head: Run, name: str, run: Run) -> None:
    # What stands below the table is the last run's; every run keeps its own.
    origin = {key: run[key] for key in ("machine", "versions", "date")}
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(out.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        runs = _runs(out)
        runs.setdefault(name, []).append(run)
        write_atomically(out, json.dumps(head | origin | {"runs": runs}, indent=1) + "\n")
    finally:
        os.close(folder)
