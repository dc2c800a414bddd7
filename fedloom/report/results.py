"""What came out of each group of runs, in numbers, and which of them are best."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from fedloom.report.curves import mean, over_runs, values
from fedloom.report.groups import Group
from fedloom.runs.record import RunRecord

OfRun = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Metric:
    """A number that a run ends with.

    Attributes:
        title: What the page calls it.
        of_run: The number, None where the run does not have it.
        text: How it is written.
        better: 1 where more is better, -1 where less is, 0 where neither.
    """

    title: str
    of_run: OfRun
    text: Callable[[float], str]
    better: int


@dataclass(frozen=True)
class Cell:
    """A group's number as the table shows it.

    Attributes:
        text: The mean over runs; a dash where there is no number.
        spread: From the lowest to the highest of several runs; empty where they read the same.
        best: Whether no comparable group has a better mean, and at least half have a worse one.
    """

    text: str
    spread: str = ""
    best: bool = False


def _last(name: str) -> OfRun:
    return lambda run: next(reversed(values(run.rows, name)), None)


def _lowest(name: str) -> OfRun:
    return lambda run: min(values(run.rows, name), default=None)


def _highest(name: str) -> OfRun:
    return lambda run: max(values(run.rows, name), default=None)


def _sum(*names: str) -> OfRun:
    def total(run: RunRecord) -> float | None:
        found = [value for name in names for value in values(run.rows, name)]
        return sum(found) if found else None

    return total


def _of_summary(name: str) -> OfRun:
    return lambda run: run.summary.get(name)


def _judged(run: RunRecord) -> float | None:
    """The accuracy that `fedloom eval` found for the last round judged, the mean over its peers."""
    by_round: dict[str, list[float]] = {}
    for adapter in run.judged.get("adapters", []):
        if found := re.search(r"/round-(\d+)", adapter["name"]):
            by_round.setdefault(found[1], []).append(float(adapter["accuracy"]))
    return mean(by_round[max(by_round)]) if by_round else None


def duration(seconds: float) -> str:
    """A time as people say it: `48.2 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _bytes(value: float) -> str:
    return decimal(round(value))


def _mebibytes(value: float) -> str:
    return f"{value / 1024:.2f} GiB" if value >= 1024 else f"{value:.0f} MiB"


def _count(value: float) -> str:
    return f"{value:,.0f}"


METRICS = (
    Metric("Validation loss, final", _last("val_loss"), _number, -1),
    Metric("Validation loss, best", _lowest("val_loss"), _number, -1),
    Metric("Accuracy, final", _last("val_accuracy"), _share, 1),
    Metric("Accuracy, best", _highest("val_accuracy"), _share, 1),
    Metric("Answers right", _last("val_answer_accuracy"), _share, 1),
    Metric("Right, fedloom eval", _judged, _share, 1),
    Metric("Consensus error", _last("consensus_error"), _number, -1),
    Metric("Bytes sent", _sum("bytes_up", "bytes_down"), _bytes, -1),
    Metric("Tokens", _sum("tokens"), _count, 0),
    Metric("Training time", _sum("seconds"), duration, -1),
    Metric("Peak memory", _of_summary("peak_memory_mib"), _mebibytes, -1),
    Metric("Peak GPU memory", _of_summary("peak_gpu_memory_mib"), _mebibytes, -1),
)


def results(groups: Sequence[Group]) -> dict[str, list[Cell]]:
    """A list with a cell per group for each metric that some group has.

    Best is who is best among finished runs of the same model and data: losses of others mean other things,
    and who has not come to the end has sent little.
    """
    table = {}
    for metric in METRICS:
        found = [over_runs(group, metric.of_run) for group in groups]
        if any(found):
            best = _best(groups, [mean(numbers) if numbers else None for numbers in found], metric.better)
            table[metric.title] = [
                _cell(metric, numbers, place in best) for place, numbers in enumerate(found)
            ]
    return table


def _cell(metric: Metric, numbers: list[float] | None, best: bool) -> Cell:
    if not numbers:
        return Cell("–")
    low, high = metric.text(min(numbers)), metric.text(max(numbers))
    return Cell(metric.text(mean(numbers)), f"{low} to {high}" if low != high else "", best)


def _best(groups: Sequence[Group], means: Sequence[float | None], better: int) -> set[int]:
    """The places of the best, several if they are equal; nobody where more than half are."""
    comparable: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for place, (group, value) in enumerate(zip(groups, means, strict=True)):
        if value is not None and group.finished:
            comparable.setdefault((group.first.model, group.first.data), []).append((place, value))
    best: set[int] = set()
    for numbers in comparable.values():
        top = max(better * value for _, value in numbers)
        winners = {place for place, value in numbers if better * value == top}
        if 2 * len(winners) <= len(numbers):
            best |= winners
    return best
