"""Which layers gradient priority scored high, and which it selected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedloom.report.curves import Row
from fedloom.report.figure import Figure, rounds_axis
from fedloom.runs.record import RunRecord

MOST_COLUMNS = 160
"""Rounds of a heat map; of more, as many are shown at even distances."""


def layer_figures(run: RunRecord) -> list[Figure]:
    """A heat map of scores and one of selections, where the run has them."""
    rows = [row for row in run.rows if row.get("selected_layers") is not None]
    scored = [row for row in rows if row.get("layer_scores")]
    figures = []
    if scored:
        figures.append(_scores(run, scored))
    if rows:
        figures.append(_selections(run, rows, len(scored[0]["layer_scores"]) if scored else None))
    return figures


def _scores(run: RunRecord, rows: Sequence[Row]) -> Figure:
    shown = _evenly(rows)
    relative = [_relative(row["layer_scores"]) for row in shown]
    layers = len(relative[0])
    mean = [np.mean([of_round[layer] or 0.0 for of_round in relative]) for layer in range(layers)]
    highest = sorted(range(layers), key=lambda layer: -mean[layer])[:3]
    trace = _heat(shown, [list(of_layer) for of_layer in zip(*relative, strict=True)])
    trace |= {
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": 1,
        "colorbar": {"thickness": 10, "tickformat": ".0%", "outlinewidth": 0},
        "hovertemplate": "round %{x}, layer %{y}: %{z:.0%}<extra></extra>",
    }
    named = ", ".join(map(str, highest))
    return Figure(
        "Layer scores",
        f"Scores of {layers} layers in {len(shown)} rounds. Highest on average: layers {named}.",
        [trace],
        _layout(layers, rows[-1]["round"]),
        note=f"A layer's score, of the round's highest. Highest on average: layers {named}.{_left_out(rows)}",
        height=_height(layers),
        runs=(run.name,),
    )


def _selections(run: RunRecord, rows: Sequence[Row], layers: int | None) -> Figure:
    counts = Counter(layer for row in rows for layer in row["selected_layers"])
    layers = layers or max(counts, default=0) + 1
    shown = _evenly(rows)
    chosen = [set(row["selected_layers"]) for row in shown]
    trace = _heat(shown, [[int(layer in of_round) for of_round in chosen] for layer in range(layers)])
    trace |= {
        "colorscale": [[0, "@faint"], [1, "@c0"]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "hovertemplate": "round %{x}, layer %{y}<extra></extra>",
    }
    often = ", ".join(f"{layer} ({count / len(rows):.0%})" for layer, count in counts.most_common(3))
    note = f"{len(counts)} of {layers} layers were selected at least once, most often {often} of the rounds."
    return Figure(
        "Selected layers",
        f"Layers selected in {len(shown)} rounds. {note}",
        [trace],
        _layout(layers, rows[-1]["round"]),
        note=note + _left_out(rows),
        height=_height(layers),
        runs=(run.name,),
    )


def _heat(rows: Sequence[Row], z: list[list[Any]]) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "x": [row["round"] for row in rows],
        "y": list(range(len(z))),
        "z": z,
        "xgap": 1 if len(rows) <= 60 else 0,
        "ygap": 1,
    }


def _layout(layers: int, last_round: int) -> dict[str, Any]:
    plain = {"showgrid": False, "zeroline": False}
    downwards = {"title": {"text": "layer"}, "autorange": "reversed", "dtick": 1 if layers <= 12 else 5}
    return {"xaxis": rounds_axis(last_round) | plain, "yaxis": downwards | plain}


def _height(layers: int) -> int:
    return 150 + 9 * min(max(layers, 12), 60)


def _relative(scores: list[float | None]) -> list[float | None]:
    highest = max((score for score in scores if score is not None), default=0.0)
    return [None if score is None else score / highest if highest > 0 else 0.0 for score in scores]


def _evenly(rows: Sequence[Row]) -> list[Row]:
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_COLUMNS)).round().astype(int)
    return [rows[place] for place in places]


def _left_out(rows: Sequence[Row]) -> str:
    return (
        f" {MOST_COLUMNS} of {len(rows)} rounds are shown, at even distances."
        if len(rows) > MOST_COLUMNS
        else ""
    )
