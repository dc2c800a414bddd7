"""The table of runs dealt over ranks."""

from __future__ import annotations

import statistics
from typing import Any

from cells import DASH, table, times


def ranks_table(result: dict[str, Any]) -> list[str]:
    """A row per run and way: seconds of a round and of all validations, and the ratios."""
    names = {"process": "one process, two threads", "ranks": "two ranks, one thread each"}
    rows = []
    for run, found in result["runs"].items():
        for way, label in names.items():
            cells = [f"`fedloom {run}`", label]
            for what in ("round_seconds", "eval_seconds"):
                seconds = [turn[way][what] for turn in found["turns"]]
                spread = f"{min(seconds):.3g}{DASH}{max(seconds):.3g}"
                cells.append(f"{statistics.median(seconds):.3g} ({spread})")
                cells.append(times(found[f"{what}_ratio"] if way == "ranks" else None))
            rows.append(cells)
    settings = result["settings"]
    turns = len(next(iter(result["runs"].values()))["turns"])
    note = (
        f"Embedded arithmetic in {settings['dtype']}: {settings['fed_model']}, {settings['clients']} clients "
        f"× {settings['batches']} batches of 2; {settings['dfl_model']}, {settings['peers']} peers on a ring "
        f"× {settings['batches']} batches of 8. Medians of {turns} turns (smallest{DASH}largest), "
        "ratios within each. A round is the median of its run's, the first left out; loading is not in it."
    )
    head = ["run", "", "seconds per round", "of one process", "seconds of validation", "of one process"]
    return [*table(head, rows), "", note]
