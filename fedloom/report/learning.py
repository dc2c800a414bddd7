"""The curves that every run has: loss and accuracy over rounds, bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedloom.report.curves import MOST_POINTS, Band, band, stride, values
from fedloom.report.figure import Entry, Figure, Trace, area, line, look, rounds_axis, share_axis
from fedloom.report.groups import Group

AXES = ("rounds", "bytes", "seconds")
_UNITS: dict[str, dict[str, Any]] = {
    "bytes": {"title": {"text": "bytes sent, up and down"}, "tickformat": "~s", "ticksuffix": "B"},
    "seconds": {"title": {"text": "seconds of training and averaging"}},
}
CURVES = (
    ("val_loss", "Validation loss", False),
    ("val_accuracy", "Validation accuracy", True),
    ("val_answer_accuracy", "Answers right, in validation", True),
    ("train_loss", "Training loss", False),
)
"""Metric, heading, whether it is a share."""

MUCH_SPREAD = 30
"""Highest over lowest value from which on a logarithmic axis says more."""


def learning_figures(groups: Sequence[Group]) -> list[Figure]:
    """A figure per metric that some run has."""
    figures = [curves(groups, name, title, share=share) for name, title, share in CURVES]
    return [figure for figure in figures if figure is not None]


def consensus_figure(groups: Sequence[Group]) -> Figure | None:
    """How far peers are apart, over rounds; None where there are no peers."""
    found = [n for g in groups for run in g.runs for n in values(run.rows, "consensus_error")]
    positive = [number for number in found if number > 0]
    spread = bool(positive) and max(positive) > MUCH_SPREAD * min(positive)
    return curves(groups, "consensus_error", "Consensus error", logarithmic=spread)


def curves(
    groups: Sequence[Group], name: str, title: str, *, share: bool = False, logarithmic: bool = False
) -> Figure | None:
    """One metric of all groups that have it, a line each, with a band where there are several seeds.

    Args:
        groups: All of the page; a group's look is by its place here.
        name: The metric.
        title: The figure's heading.
        share: Whether the metric is a share, shown in percent.
        logarithmic: Whether the y axis is; a value of 0 then has no point.
    """
    traces: list[Trace] = []
    entries: list[Entry] = []
    shown = [(place, group, found) for place, group in enumerate(groups) if (found := band(group, name))]
    for place, group, found in shown:
        style = look(place)
        x = {axis: getattr(found, axis) for axis in AXES}
        first = len(traces)
        if len(group.runs) > 1:
            low = [max(value, min(_positive(found))) for value in found.low] if logarithmic else found.low
            traces.append(area(x, low, found.high, style))
        y = [value if value > 0 or not logarithmic else None for value in found.mean]
        traces.append(line(group.label, x, y, style, ".2%" if share else ".4~g"))
        entries.append(Entry(_with_seeds(group), style, list(range(first, len(traces)))))
    if not shown:
        return None
    layout: dict[str, Any] = {"yaxis": share_axis() if share else {}}
    if logarithmic:
        layout["yaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    last = "; ".join(
        f"{group.label} ends at {found.mean[-1]:.3g} after {found.rounds[-1]:.0f} rounds"
        for _, group, found in shown
    )
    return Figure(
        title,
        f"{title}{', on a logarithmic axis' if logarithmic else ''}: {last}.",
        traces,
        layout,
        entries,
        _note(groups, name),
        axes={"rounds": rounds_axis(max(found.rounds[-1] for _, _, found in shown)), **_UNITS},
    )


def _positive(found: Band) -> list[float]:
    return [value for value in found.high if value > 0] or [1.0]


def _with_seeds(group: Group) -> str:
    return f"{group.label} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.label


def _note(groups: Sequence[Group], name: str) -> str:
    longest = max(len(values(run.rows, name)) for group in groups for run in group.runs)
    return f"A point is the mean of up to {stride(longest)} rounds." if longest > MOST_POINTS else ""


def how_to_read(groups: Sequence[Group]) -> str:
    """What one has to know of the curves of these groups."""
    notes = []
    if any(len(group.runs) > 1 for group in groups):
        notes.append("Lines of several seeds are means, their bands reach from the lowest to the highest.")
    if len({(group.first.model, group.first.data) for group in groups}) > 1:
        notes.append("Losses and accuracies on different data, or of different models, do not compare.")
    return " ".join(notes)
