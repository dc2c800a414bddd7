"""What came out of each group of runs, in numbers, and which of them are best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.filesize import decimal

from fedloom.report.curves import mean, over_runs, values
from fedloom.report.groups import Group
from fedloom.runs.record import RunRecord

OfRun = Callable[[RunRecord], float | None]
Interval = tuple[float, float]

LIKELIER = "Chosen is likelier, fedloom eval"
"""Of preferences; a base can be compared by it, which has no rewards."""
NOT_EVALUATED = "not evaluated"


@dataclass(frozen=True)
class Metric:
    """A number that a run ends with.

    Attributes:
        title: What the page calls it.
        of_run: The number, None where the run does not have it.
        text: How it is written.
        better: 1 where more is better, -1 where less is, 0 where neither.
        interval_of_run: Within what a single run's number is known, where the run itself says it.
    """

    title: str
    of_run: OfRun
    text: Callable[[float], str]
    better: int
    interval_of_run: Callable[[RunRecord], Interval | None] = lambda run: None


@dataclass(frozen=True)
class Cell:
    """A group's number as the table shows it.

    Attributes:
        text: The mean over runs; a dash where there is no number.
        spread: Standard deviation over several runs and how many these are, or the interval of a single one;
            empty where nothing is known of it.
        best: Whether its interval lies on the better side of every comparable group's.
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


def _of_last_round(run: RunRecord) -> list[dict[str, Any]]:
    """What `fedloom eval` found for the adapters of the last round judged."""
    by_round: dict[str, list[dict[str, Any]]] = {}
    for adapter in run.evaluation.get("adapters", []):
        if found := re.search(r"/round-(\d+)", adapter["name"]):
            by_round.setdefault(found[1], []).append(adapter)
    return by_round[max(by_round)] if by_round else []


def _eval_score(run: RunRecord, score: str = "accuracy") -> float | None:
    """What `fedloom eval` found for the last round judged, the mean over its peers."""
    found = [float(adapter[score]) for adapter in _of_last_round(run) if score in adapter]
    return mean(found) if found else None


def _eval_interval(run: RunRecord) -> Interval | None:
    """Its 95 % interval, the mean over peers."""
    found = [adapter for adapter in _of_last_round(run) if "low" in adapter]
    if not found:
        return None
    return mean([float(each["low"]) for each in found]), mean([float(each["high"]) for each in found])


def exactly(of_run: OfRun) -> Callable[[RunRecord], Interval | None]:
    """The interval of what a run counts: no seed changes it."""

    def point(run: RunRecord) -> Interval | None:
        counted = of_run(run)
        return None if counted is None else (counted, counted)

    return point


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
    Metric(LIKELIER, partial(_eval_score, score="logp_accuracy"), _share, 1),
    Metric("Right, fedloom eval", _eval_score, _share, 1, _eval_interval),
    Metric("Answers right", _last("val_answer_accuracy"), _share, 1),
    Metric("Accuracy, final", _last("val_accuracy"), _share, 1),
    Metric("Validation loss, final", _last("val_loss"), _number, -1),
    Metric("Margin of rewards, fedloom eval", partial(_eval_score, score="margin"), _number, 1),
    Metric("Bytes sent", _sum("bytes_up", "bytes_down"), _bytes, -1, exactly(_sum("bytes_up", "bytes_down"))),
    Metric("Epsilon", _last("epsilon"), _number, 0),
    Metric("Training time", _sum("seconds"), duration, -1),
)
"""What the page begins with."""

MORE_METRICS = (
    Metric("Accuracy, best", _highest("val_accuracy"), _share, 1),
    Metric("Validation loss, best", _lowest("val_loss"), _number, -1),
    Metric("Consensus error", _last("consensus_error"), _number, -1),
    Metric("Tokens", _sum("tokens"), _count, 0),
    Metric("Peak memory", _of_summary("peak_memory_mib"), _mebibytes, -1),
    Metric("Peak GPU memory", _of_summary("peak_gpu_memory_mib"), _mebibytes, -1),
)


def results(groups: Sequence[Group], metrics: Sequence[Metric] = METRICS) -> dict[str, list[Cell]]:
    """A list with a cell per group for each metric that some group has.

    Best is who is best among finished runs of the same model and data: losses of others mean other things,
    and who has not come to the end has sent little.
    """
    table = {}
    for metric in metrics:
        found = [over_runs(group, metric.of_run) for group in groups]
        if any(found):
            intervals = [
                interval(group, metric, numbers) for group, numbers in zip(groups, found, strict=True)
            ]
            best = _best(groups, intervals, metric.better)
            missing = NOT_EVALUATED if metric.of_run is _eval_score else "–"
            table[metric.title] = [
                _cell(metric, numbers, intervals[place], place in best, missing)
                for place, numbers in enumerate(found)
            ]
    return table


def interval(group: Group, metric: Metric, numbers: Sequence[float] | None) -> Interval | None:
    """Within what a group's number is known: mean ± standard deviation over seeds, or what the runs tell.

    None where nothing says how far another seed would be from this one.
    """
    if not numbers:
        return None
    intervals = [metric.interval_of_run(run) for run in group.runs]
    known = [each for each in intervals if each is not None]
    low, high = [], []
    if len(numbers) > 1:
        low, high = [mean(numbers) - deviation(numbers)], [mean(numbers) + deviation(numbers)]
    if len(known) == len(intervals):
        low.append(mean([each[0] for each in known]))
        high.append(mean([each[1] for each in known]))
    return (min(low), max(high)) if low else None


def deviation(numbers: Sequence[float]) -> float:
    """The standard deviation of a sample, with n - 1 in the denominator; 0 for a single number."""
    if len(numbers) < 2:
        return 0.0
    middle = mean(numbers)
    return math.sqrt(sum((number - middle) ** 2 for number in numbers) / (len(numbers) - 1))


def _cell(
    metric: Metric, numbers: list[float] | None, within: Interval | None, best: bool, missing: str
) -> Cell:
    if not numbers:
        return Cell(missing)
    text = metric.text(mean(numbers))
    if len(numbers) > 1:
        return Cell(text, f"± {metric.text(deviation(numbers))}, n = {len(numbers)}", best)
    if within is not None and within[0] < within[1]:
        return Cell(text, f"{metric.text(within[0])} to {metric.text(within[1])}", best)
    return Cell(text, "", best)


def _best(groups: Sequence[Group], intervals: Sequence[Interval | None], better: int) -> set[int]:
    """The places of those whose interval lies on the better side of every comparable group's.

    Nobody where one of them has no interval: a single seed does not say what another would come to.
    """
    comparable: dict[tuple[str, str], dict[int, Interval | None]] = {}
    for place, group in enumerate(groups):
        if group.finished and better:
            comparable.setdefault((group.first.model, group.first.data), {})[place] = intervals[place]
    best: set[int] = set()
    for found in comparable.values():
        known = {place: within for place, within in found.items() if within is not None}
        if len(known) < 2 or len(known) < len(found):
            continue
        # Signs turned so that more is better, the worse end first.
        turned = {place: sorted(better * end for end in within) for place, within in known.items()}
        best |= {
            place
            for place, (worse, _) in turned.items()
            if all(worse > other[1] for at, other in turned.items() if at != place)
        }
    return best
