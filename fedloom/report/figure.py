"""A figure as plain data: what plotly's script draws, and what stands around it.

Colours are tokens, `@c0` to `@c7`, `@ink`, `@grid` and so on, with an opacity as in `@c0/0.2`. They name
variables of page.css, and page.js puts in their values, so that figures follow the page from light to dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Trace = dict[str, Any]

COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up")
MOST_NAMES = 3
FEW_POINTS = 40
"""Up to which each point of a line gets a mark."""
FEW_ROUNDS = 8
"""Up to which each round gets a mark on its axis."""


@dataclass(frozen=True)
class Look:
    """How one of several things is drawn: no two of the first 32 look the same.

    Attributes:
        colour: Its token.
        dash: Of its line.
        marker: Of its points.
    """

    colour: str
    dash: str
    marker: str


def look(number: int) -> Look:
    """The look of the thing with this number; neighbours differ in colour, dash and marker."""
    turn = (number + number // COLOURS) % len(DASHES)
    return Look(f"@c{number % COLOURS}", DASHES[turn], MARKERS[turn])


@dataclass(frozen=True)
class Entry:
    """A line of a legend, which shows and hides some traces.

    Attributes:
        label: What it says.
        look: Of the traces.
        traces: Which.
        filled: Whether the traces are areas and not lines.
        striped: Whether the areas are.
    """

    label: str
    look: Look
    traces: list[int]
    filled: bool = False
    striped: bool = False


@dataclass(frozen=True)
class Figure:
    """What is drawn and told.

    Attributes:
        title: Its heading, without the runs.
        about: What can be seen, for those who cannot see it.
        traces: As plotly takes them. An `x` that is a mapping has a list for each of `axes`.
        layout: As plotly takes it, beside what page.js gives every figure.
        legend: What stands below; empty where nothing needs a name.
        note: A sentence or two below the figure.
        height: In CSS pixels.
        runs: The names of the runs whose figure it is; empty where the legend names them.
        axes: The x axes to choose from, by name, as plotly takes an axis.
    """

    title: str
    about: str
    traces: list[Trace]
    layout: dict[str, Any]
    legend: list[Entry] = field(default_factory=list)
    note: str = ""
    height: int = 320
    runs: tuple[str, ...] = ()
    axes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The title, and the first runs."""
        if not self.runs:
            return self.title
        more = f" and {len(self.runs) - MOST_NAMES} more" if len(self.runs) > MOST_NAMES else ""
        return f"{self.title}: {', '.join(self.runs[:MOST_NAMES])}{more}"


def line(name: str, x: object, y: Sequence[float | None], look: Look, unit: str = ".4~g") -> Trace:
    """A line with points, if they are few; `unit` is d3's format of a value."""
    few = len(y) <= FEW_POINTS
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": shown(name),
        "x": x,
        "y": list(y),
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "symbol": look.marker, "size": 6},
        "hovertemplate": f"%{{x}}: %{{y:{unit}}}",
    }


def area(x: Any, low: Sequence[float], high: Sequence[float], look: Look, opacity: float = 0.2) -> Trace:
    """What lies between two curves over the same x."""
    there_and_back = (
        {name: [*points, *points[::-1]] for name, points in x.items()}
        if isinstance(x, Mapping)
        else [*x, *x[::-1]]
    )
    return {
        "type": "scatter",
        "mode": "lines",
        "x": there_and_back,
        "y": [*high, *low[::-1]],
        "fill": "toself",
        "fillcolor": f"{look.colour}/{opacity}",
        "line": {"color": f"{look.colour}/0", "width": 0},
        "hoverinfo": "skip",
    }


def rounds_axis(last: float | int) -> dict[str, Any]:
    """The axis of rounds; where they are few it has no marks between two."""
    return {"title": {"text": "rounds"}} | ({"dtick": 1} if last <= FEW_ROUNDS else {})


def share_axis() -> dict[str, Any]:
    """The axis of a share, in percent, which goes no further than a share can."""
    # As many digits as neighbouring marks need to differ.
    return {"tickformat": "~%", "autorangeoptions": {"clipmin": -0.01, "clipmax": 1.01}}


def shown(text: str, longest: int = 60) -> str:
    """A text as plotly shows it letter by letter: it reads some HTML, and breaks no lines."""
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…", quote=False)


def compact(value: Any) -> Any:
    """The same data with numbers of six digits, which is more than a screen shows."""
    if isinstance(value, Mapping):
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [compact(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
    return value
