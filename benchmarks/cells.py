"""Pieces of Markdown that all tables are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from scipy import stats

DASH = "–"


def mean_of(values: Iterable[float]) -> str:
    every = list(values)
    return f"{statistics.mean(every):.3f} ({min(every):.3f}{DASH}{max(every):.3f})"


def percent_of(values: Iterable[float]) -> str:
    every = [100 * value for value in values]
    return f"{statistics.mean(every):.0f} % ({min(every):.0f}{DASH}{max(every):.0f})"


def geometric(ratios: Iterable[float]) -> tuple[float, float, float]:
    """Geometric mean of some ratios and its 95 % interval, Student's t of their logarithms; nan of one."""
    mean, low, high = map(math.exp, centre(map(math.log, ratios)))
    return mean, low, high


def centre(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean of some numbers and its 95 % interval, Student's t; nan of one."""
    every = list(values)
    mean, count = statistics.fmean(every), len(every)
    if count < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(every) / math.sqrt(count)
    return mean, mean - half, mean + half


def interval(ratios: Iterable[float]) -> str:
    mean, low, high = geometric(ratios)
    return f"{mean:.2f}" + ("" if math.isnan(low) else f" ({low:.2f}{DASH}{high:.2f})")


def points(differences: Iterable[float]) -> str:
    mean, low, high = centre(100 * difference for difference in differences)
    return f"{mean:+.0f}" + ("" if math.isnan(low) else f" ({low:+.0f} to {high:+.0f})")


def differences(values: Iterable[float]) -> str:
    mean, low, high = centre(values)
    if math.isnan(low):
        return f"{mean:+.3g}"
    bold = "**" if low > 0 or high < 0 else ""
    return f"{bold}{mean:+.3g}{bold} ({low:+.3g} to {high:+.3g})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"
