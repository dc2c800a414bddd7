"""From rows of metrics to the points of a curve, over rounds, bytes and seconds, and to bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fedloom.report.groups import Group

Row = Mapping[str, Any]

MOST_POINTS = 400
"""Points of a curve at most; of more, neighbours are joined to their mean."""


@dataclass(frozen=True)
class Band:
    """A metric over the rounds that every run of a group has it for.

    All lists have a number per round.

    Attributes:
        rounds: Rounds done.
        bytes: Sent up and down until then, the mean over runs.
        seconds: Of training and averaging until then, the mean over runs.
        mean, low, high: Over runs; all the same for a single run.
    """

    rounds: list[float]
    bytes: list[float]
    seconds: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def cumulative(rows: Sequence[Row], *names: str) -> list[float]:
    """The sum of these metrics until each row, that row included; what is missing counts nothing."""
    return list(accumulate(float(sum(row.get(name) or 0 for name in names)) for row in rows))


def values(rows: Sequence[Row], name: str) -> list[float]:
    """A metric in all rows that have it, with a finite number."""
    return [float(row[name]) for row in rows if is_number(row.get(name))]


def is_number(value: object) -> bool:
    """Whether a metric is there and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def band(group: Group, name: str) -> Band | None:
    """A metric's mean, lowest and highest value over the runs of a group; None where no round has it.

    Where runs stopped at different rounds it goes on to the shortest one's end: a mean over other runs than
    before would be no continuation.
    """
    points = []
    for run in group.runs:
        sent = cumulative(run.rows, "bytes_up", "bytes_down")
        spent = cumulative(run.rows, "seconds")
        at = zip(run.rows, sent, spent, strict=True)
        points.append(
            {row["round"]: (b, s, float(row[name])) for row, b, s in at if is_number(row.get(name))}
        )
    shared = sorted(set.intersection(*(set(of_run) for of_run in points)))
    if not shared:
        return None
    by_round = [[of_run[number] for of_run in points] for number in shared]
    columns = [
        [float(number) for number in shared],
        *([mean([p[place] for p in of_round]) for of_round in by_round] for place in (0, 1, 2)),
        [min(p[2] for p in of_round) for of_round in by_round],
        [max(p[2] for p in of_round) for of_round in by_round],
    ]
    return Band(*(_thinned(column) for column in columns))


def stride(points: int) -> int:
    """How many neighbours are joined to one point, so that no more than `MOST_POINTS` are left."""
    return -(-points // MOST_POINTS)


def _thinned(column: list[float]) -> list[float]:
    step = stride(len(column))
    return [mean(column[start : start + step]) for start in range(0, len(column), step)]


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(numbers) / len(numbers)


def quantile(rising: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted numbers lies, interpolated between neighbours."""
    place = share * (len(rising) - 1)
    below = math.floor(place)
    above = min(below + 1, len(rising) - 1)
    return rising[below] + (place - below) * (rising[above] - rising[below])


def over_runs(group: Group, of_run: Callable[[Any], float | None]) -> list[float] | None:
    """A number per run of a group; None where a run has none."""
    found = [of_run(run) for run in group.runs]
    numbers = [number for number in found if number is not None]
    return numbers if len(numbers) == len(found) else None
