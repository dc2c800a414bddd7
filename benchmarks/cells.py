"""Pieces of Markdown that all tables are made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

DASH = "–"


def mean_of(values: Iterable[float]) -> str:
    every = list(values)
    return f"{statistics.mean(every):.3f} ({min(every):.3f}{DASH}{max(every):.3f})"


def percent_of(values: Iterable[float]) -> str:
    every = [100 * value for value in values]
    return f"{statistics.mean(every):.0f} % ({min(every):.0f}{DASH}{max(every):.0f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"
