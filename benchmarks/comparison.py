"""Runs of several configs with several seeds, kept in one file, so that an interrupted comparison goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

    Args:
        out: The file with all runs.
        kind: Of result, for `tables`.
        command: What makes such a file, as a reader would type it.
        configs: Files of options; a run goes by the file's name.
        seeds: Of the runs.
        run_once: ``(config, seed) -> run``, with "seed", "machine", "versions" and "date".
    """
    runs: dict[str, list[Run]] = {}
    if out.is_file():
        runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    for seed in seeds:
        for path in configs:
            done = runs.setdefault(path.stem, [])
            if not any(run["seed"] == seed for run in done):
                done.append(run_once(path, seed))
                print(path.stem, seed, flush=True)
                _write(out, {"kind": kind, "command": command}, runs)
    _write(out, {"kind": kind, "command": command}, runs)


def _write(path: Path, head: Run, runs: dict[str, list[Run]]) -> None:
    last = [run for done in runs.values() for run in done][-1]
    # What stands below the table is the last run's; every run keeps its own.
    origin = {name: last[name] for name in ("machine", "versions", "date")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head | origin | {"runs": runs}, indent=1) + "\n", encoding="utf-8")
