"""The sentence that a page begins with: what came out, what it was before, what was sent."""

from __future__ import annotations

from collections.abc import Sequence

from rich.filesize import decimal

from fedloom.report.curves import cumulative, mean, over_runs, values
from fedloom.report.groups import Group
from fedloom.report.results import LIKELIER, METRICS, NOT_EVALUATED, Metric, results
from fedloom.runs.record import RunRecord

_BEFORE = {
    LIKELIER: ("of the chosen answers likelier", None),
    "Right, fedloom eval": ("right", None),
    "Answers right": ("of the validation answers right", "val_answer_accuracy"),
    "Accuracy, final": ("of the validation tokens or classes right", "val_accuracy"),
    "Validation loss, final": ("validation loss", "val_loss"),
}
"""Of the metrics that a headline may be about, in their order: its words, and the column of round 0."""


def headline(groups: Sequence[Group]) -> str:
    """A sentence about the group that came furthest: `mine: 46.0% right, 10.0% before, 590.0 MB sent.`

    What several groups have is compared; where they cannot be told apart that is said.
    """
    for metric in METRICS:
        words = _BEFORE.get(metric.title)
        found = {
            place: numbers
            for place, group in enumerate(groups)
            if (numbers := over_runs(group, metric.of_run))
        }
        if words is None or not found:
            continue
        first = max(found, key=lambda place: metric.better * mean(found[place]))
        group = groups[first]
        parts = [f"{metric.text(mean(found[first]))} {words[0]}"]
        before = _before(group, metric, words[1])
        parts += [f"{metric.text(before)} before"] if before is not None else []
        sent = mean([cumulative(run.rows, "bytes_up", "bytes_down")[-1] for run in group.runs])
        parts += [f"{decimal(round(sent))} sent"] if sent else []
        name = f"{group.label}: " if len(groups) > 1 else ""
        return f"{name}{', '.join(parts)}.{_compared(groups, metric, first)}"
    return ""


def _before(group: Group, metric: Metric, column: str | None) -> float | None:
    """The same number before training, the mean over runs; None where a run does not have it."""
    found = over_runs(group, _base if column is None else lambda run: _of_round_0(run, column))
    return mean(found) if found else None


def _base(run: RunRecord) -> float | None:
    """What `fedloom eval` found for the model without an adapter, where it was judged beside the run's."""
    named = {adapter["name"]: adapter for adapter in run.evaluation.get("adapters", [])}
    found = named.get("base", {})
    return found.get("logp_accuracy", found.get("accuracy"))


def _of_round_0(run: RunRecord, column: str) -> float | None:
    return next(iter(values([row for row in run.rows if row.get("round") == 0], column)), None)


def _compared(groups: Sequence[Group], metric: Metric, first: int) -> str:
    if len(groups) < 2:
        return ""
    cells = results(groups, [metric])[metric.title]
    verdict = (
        " Best of those it compares with."
        if cells[first].best
        else " No run is shown to be best by this: intervals overlap, or there is one seed alone."
    )
    missing = [group.label for group, cell in zip(groups, cells, strict=True) if cell.text == NOT_EVALUATED]
    return verdict + (f" Not evaluated: {', '.join(missing)}." if missing else "")
