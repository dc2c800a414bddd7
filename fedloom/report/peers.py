"""What is only there without a server: each peer's accuracy, and the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedloom.errors import UserError
from fedloom.federation.positions import positions
from fedloom.federation.topology import Topology, build_topology, mixing, spectral_gap
from fedloom.report.curves import Row, is_number, quantile
from fedloom.report.figure import (
    Entry,
    Figure,
    Look,
    Trace,
    area,
    line,
    look,
    rounds_axis,
    share_axis,
)
from fedloom.runs.record import RunRecord

MOST_LINES = 30
"""Peers up to which each has a line of its own; of more, quantiles are shown."""
MOST_LABELS = 64
MOST_LINKS = 4000
MOST_PEERS_OF_A_GAP = 500
RANDOM_ROUNDS = 3

GREY = Look("@muted", "solid", "circle")


def accuracies(run: RunRecord) -> list[Figure]:
    """Each peer's accuracy over rounds, or its quantiles over peers; nothing without peers."""
    rows = [row for row in run.rows if row.get("peer_val_accuracy")]
    if not rows:
        return []
    peers = len(rows[0]["peer_val_accuracy"])
    # The row before the first round has the same peers, and does not say which.
    numbers = rows[-1].get("evaluated_peers") or range(peers)
    rounds = [row["round"] for row in rows]
    traces, entries = _lines(rows, rounds, numbers) if peers <= MOST_LINES else _bands(rows, rounds)
    last = sorted(value for value in rows[-1]["peer_val_accuracy"] if is_number(value))
    ends = f" At the end they are between {last[0]:.1%} and {last[-1]:.1%}." if last else ""
    return [
        Figure(
            "Peers' accuracy",
            f"Validation accuracy of {peers} peers over {len(rounds)} evaluations.{ends}",
            traces,
            {"xaxis": rounds_axis(rounds[-1]), "yaxis": share_axis()},
            entries,
            f"{peers} peers.{ends}",
            runs=(run.name,),
        )
    ]


def _lines(rows: Sequence[Row], rounds: list[int], numbers: Sequence[int]) -> tuple[list[Trace], list[Entry]]:
    traces, entries = [], []
    for place, peer in enumerate(numbers):
        y = [row["peer_val_accuracy"][place] for row in rows]
        traces.append(line(f"peer {peer + 1}", rounds, y, look(place), ".1%"))
        entries.append(Entry(f"peer {peer + 1}", look(place), [place]))
    return traces, entries


def _bands(rows: Sequence[Row], rounds: list[int]) -> tuple[list[Trace], list[Entry]]:
    found = [sorted(float(value) for value in row["peer_val_accuracy"] if is_number(value)) for row in rows]
    kept = [(number, rising) for number, rising in zip(rounds, found, strict=True) if rising]
    x = [number for number, _ in kept]
    low, first, middle, third, high = (
        [quantile(rising, share) for _, rising in kept] for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    style = look(0)
    traces = [area(x, low, high, style, 0.15), area(x, first, third, style, 0.35)]
    traces.append(line("median", x, middle, style, ".1%"))
    return traces, [
        Entry("median", style, [2]),
        Entry("middle half of the peers", Look("@c0/0.35", "solid", "square"), [1], filled=True),
        Entry("lowest to highest", Look("@c0/0.15", "solid", "square"), [0], filled=True),
    ]


def graph(run: RunRecord) -> list[Figure]:
    """The graph that the run's options name; nothing without peers, or where its file is no longer there."""
    if run.command != "dfl":
        return []
    name, peers, seed = (run.options[key] for key in ("name", "num_clients", "seed"))
    try:
        topology = build_topology(name, peers, seed)
    except UserError:
        return []
    rounds = (topology.exact_after or RANDOM_ROUNDS) if topology.varies else 1
    links = [mixing(topology, number, seed).edges for number in range(rounds)]
    at = positions(topology, np.concatenate(links), seed)
    drawn = sum(map(len, links)) <= MOST_LINKS
    traces: list[Trace] = []
    entries: list[Entry] = []
    if drawn:
        traces = [_links(at, edges, look(i) if topology.varies else GREY) for i, edges in enumerate(links)]
        entries = [Entry(f"round {i + 1}", look(i), [i]) for i in range(rounds)] if topology.varies else []
    traces.append(_dots(at, np.bincount(links[0].ravel(), minlength=peers)))
    caption = _caption(topology, links)
    limits = {"visible": False, "fixedrange": True}
    return [
        Figure(
            f"Graph {name}, {peers} peers",
            caption,
            traces,
            {
                "xaxis": limits,
                "yaxis": limits | {"scaleanchor": "x"},
                "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            },
            entries,
            caption + ("" if drawn else " There are too many links to draw."),
            height=360,
            runs=(run.name,),
        )
    ]


def _caption(topology: Topology, links: list[Any]) -> str:
    gap = spectral_gap(topology) if topology.peers <= MOST_PEERS_OF_A_GAP else None
    shown = "" if gap is None else f" Spectral gap {gap:.3g}."
    if topology.varies:
        seen = "repeats after" if topology.exact_after else "is shown for its first"
        return (
            f"{topology.peers} peers meet in pairs, others in every round; it {seen} {len(links)} rounds."
            + shown
        )
    degrees = np.bincount(links[0].ravel(), minlength=topology.peers)
    each = f"{degrees.min()}" if degrees.min() == degrees.max() else f"{degrees.min()} to {degrees.max()}"
    return f"{topology.peers} peers, {len(links[0])} links, {each} for a peer.{shown}"


def _links(at: np.ndarray, edges: np.ndarray, look: Look) -> Trace:
    ends = at[edges]  # edges, two ends, x and y
    xs, ys = ([n for a, b in ends[:, :, axis].tolist() for n in (a, b, None)] for axis in (0, 1))
    width = float(np.clip(300 / max(1, len(edges)), 0.4, 1.8))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": ys,
        "line": {"color": look.colour, "width": width, "dash": look.dash},
        "hoverinfo": "skip",
    }


def _dots(at: np.ndarray, degrees: np.ndarray) -> Trace:
    labelled = len(at) <= MOST_LABELS
    return {
        "type": "scatter",
        "mode": "markers+text" if labelled else "markers",
        "x": at[:, 0].tolist(),
        "y": at[:, 1].tolist(),
        "text": [str(peer + 1) for peer in range(len(at))],
        "customdata": degrees.tolist(),
        "textfont": {"color": "@surface", "size": 12 if len(at) <= 32 else 9},
        "marker": {"color": "@c0", "size": (26 if len(at) <= 32 else 18) if labelled else 6},
        "hovertemplate": "peer %{text}: %{customdata} links<extra></extra>",
    }
