"""Who holds how many examples of which label."""

from __future__ import annotations

from fedloom.report.figure import COLOURS, Entry, Figure, look, shown
from fedloom.runs.record import RunRecord

OTHERS = "others"
STRIPED = "/"
FEW_CLIENTS = 12
"""Clients up to which each has its number on the axis."""
MOST_GAPS = 80
"""Clients up to which there is a gap between two bars."""


def client_figures(run: RunRecord) -> list[Figure]:
    """A stacked bar per client; nothing where the run did not write down who holds what."""
    if not run.clients:
        return []
    examples: list[int] = run.clients["examples"]
    labels = _frequent(run.clients["labels"])
    numbers = [client + 1 for client in range(len(examples))]
    traces = [
        {
            "type": "bar",
            "name": shown(label),
            "x": numbers,
            "y": counts,
            # Neighbours in a bar differ in more than colour.
            "marker": {
                "color": look(place).colour,
                "line": {"width": 0},
                "pattern": {
                    "shape": STRIPED if _striped(place) else "",
                    "fillmode": "overlay",
                    "fgcolor": "@surface",
                    "solidity": 0.25,
                },
            },
            "hovertemplate": "client %{x}: %{y}",
        }
        for place, (label, counts) in enumerate((labels or {"examples": examples}).items())
    ]
    one_by_one = {"dtick": 1} if len(examples) <= FEW_CLIENTS else {}
    note = f"{len(examples)} clients hold {_range(examples)} examples each, {sum(examples):,} in all."
    return [
        Figure(
            f"{'Labels' if labels else 'Examples'} per client",
            f"{note} Labels: {', '.join(labels) or 'none'}.",
            traces,
            {
                "barmode": "stack",
                "bargap": 0.15 if len(examples) <= MOST_GAPS else 0,
                "xaxis": {"title": {"text": "client"}, "showgrid": False, "zeroline": False} | one_by_one,
                "yaxis": {"title": {"text": "examples"}},
            },
            [
                Entry(label, look(place), [place], filled=True, striped=_striped(place))
                for place, label in enumerate(labels)
            ],
            f"{note} {_kept(run)}",
            runs=(run.name,),
        )
    ]


def _striped(place: int) -> bool:
    """Whether a label's part of the bars, and of the legend, is striped: every other one is."""
    return place % 2 == 1


def _frequent(labels: dict[str, list[int]]) -> dict[str, list[int]]:
    """As many labels as there are colours; of more, the rarest are joined."""
    if len(labels) <= COLOURS:
        return labels
    by_count = sorted(labels, key=lambda label: -sum(labels[label]))
    kept = {label: labels[label] for label in by_count[: COLOURS - 1]}
    rest = [labels[label] for label in by_count[COLOURS - 1 :]]
    return kept | {OTHERS: [sum(counts) for counts in zip(*rest, strict=True)]}


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _kept(run: RunRecord) -> str:
    sizes: list[int] = run.clients["validation"]
    own = " of each client's own" if len(sizes) > 1 else ""
    validation = f"Validation is on {_range(sizes)} others{own}."
    server = run.clients["server"]
    return f"{validation} The server keeps {server:,} for itself." if server else validation
