"""The table of steps with each example's gradient clipped."""

from __future__ import annotations

import statistics
from typing import Any

from cells import table

_PAIRS = (("fedloom-clipped", "fedloom"), ("opacus", "peft"), ("opacus-ghost", "peft"))


def private_step_table(result: dict[str, Any]) -> list[str]:
    """A row per shape: CPU seconds of each way, and what clipping takes of each."""
    rows = []
    for row in result["rows"]:
        shared = f", {row['shared']} shared" if row["shared"] else ""
        seconds = {name: f"{statistics.median(own):.3g}" for name, own in row["cpu_seconds"].items()}
        cells = [f"{row['model']}, {row['targets']}"]
        cells.append(f"{row['clients']} × {row['examples']} × {row['tokens']}{shared}")
        ways = ("peft", "opacus", "opacus-ghost", "fedloom", "fedloom-clipped")
        cells += [seconds.get(name, "") for name in ways]
        cells += [_ratios(row, *pair) for pair in _PAIRS]
        rows.append(cells)
    settings = result["settings"]
    worst = max((far for row in result["rows"] for far in row["apart"].values()), default=0.0)
    note = (
        f"One step's gradients in float32, LoRA r {settings['rank']}. Seconds of CPU, medians of "
        f"{settings['repeats']} turns; ratios within each turn, of CPU time (of wall time). "
        f"fedloom's clipped sum is within {worst:.1g} (relative) of Opacus' in every row that has both."
    )
    head = ["LoRA on", "clients × examples × tokens", "PEFT", "Opacus", "Opacus, ghost", "fedloom"]
    head += ["**fedloom, clipped**", "**of fedloom's plain**", "Opacus of PEFT's", "ghost of PEFT's"]
    return [*table(head, rows), "", note]


def _ratios(row: dict[str, Any], clipped: str, plain: str) -> str:
    if clipped not in row["cpu_seconds"]:
        return ""
    cpu, wall = (
        statistics.median(a / b for a, b in zip(row[of][clipped], row[of][plain], strict=True))
        for of in ("cpu_seconds", "wall_seconds")
    )
    return f"{cpu:.2f} ({wall:.2f})"
