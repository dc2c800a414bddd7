"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import count

from fedloom.report.clients import client_figures
from fedloom.report.figure import DASHES, MARKERS, Entry, Figure, compact
from fedloom.report.groups import Group
from fedloom.report.headline import headline
from fedloom.report.layers import layer_figures
from fedloom.report.learning import AXES, consensus_figure, how_to_read, learning_figures
from fedloom.report.markup import Markup, join, tag
from fedloom.report.peers import accuracies, graph
from fedloom.report.predictions import predictions
from fedloom.report.tables import differing, finals, folded, glance, not_evaluated
from fedloom.runs.record import RunRecord

MOST_TITLES = 3
"""Runs that a page's title names; of more it counts them, so that a phone shows what came out."""

# Nothing may be fetched, whatever stands on the page.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STROKES = {"solid": None, "dash": "7 4", "dot": "2 4", "dashdot": "8 3 2 3"}
_POINTS = {
    "circle": "M12 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "square": "M12.5 2.5h7v7h-7z",
    "diamond": "M16 1l5 5l-5 5l-5-5z",
    "triangle-up": "M16 1l5 9h-10z",
}
assert set(_STROKES) == set(DASHES) and set(_POINTS) == set(MARKERS)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; without content there is no heading either."""

    ident: str
    title: str
    content: Markup


def page(groups: Sequence[Group], plotly_script: str) -> str:
    """The whole page.

    Args:
        groups: What it shows, at least one.
        plotly_script: Plotly's JavaScript.
    """
    labels = [group.label for group in groups]
    title = ", ".join(labels) if len(labels) <= MOST_TITLES else f"{len(labels)} runs"
    sections = [section for section in _sections(groups) if section.content]
    links = [tag("li", tag("a", section.title, href=f"#{section.ident}")) for section in sections]
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag(
            "header",
            tag("p", "fedloom report", class_="kicker"),
            tag("h1", title),
            tag("p", said, class_="headline") if (said := headline(groups)) else "",
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("noscript", tag("p", "The figures need JavaScript; the tables do not.")),
        tag(
            "main",
            *(tag("section", tag("h2", one.title), one.content, id=one.ident) for one in sections),
        ),
        # A script ends at the first </script, wherever it stands; both scripts are fixed and hold none.
        tag("script", Markup(plotly_script)),
        tag("script", Markup(_text("page.js"))),
    )
    head = join(
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"{title} · fedloom report"),
        tag("style", Markup(_text("page.css"))),
    )
    html = f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"
    # A model may write half of a surrogate pair, which no file can hold.
    return html.encode("utf-8", "replace").decode("utf-8")


def _text(name: str) -> str:
    return files("fedloom.report").joinpath(name).read_text(encoding="utf-8")


def _sections(groups: Sequence[Group]) -> list[Section]:
    numbers = count(1)

    def drawn(figures: Sequence[Figure | None]) -> Markup:
        made = [_figure(one, next(numbers)) for one in figures if one is not None]
        return tag("div", *made, class_="figures") if made else Markup("")

    def per_run(*makers: Callable[[RunRecord], list[Figure]], before: Sequence[Figure | None] = ()) -> Markup:
        """The first run of each group in sight, its other seeds folded; equal figures once."""
        firsts = [figure for make in makers for group in groups for figure in make(group.first)]
        others = [run for group in groups for run in group.runs[1:]]
        shown = len(_once(firsts))
        every = _once([*firsts, *(figure for make in makers for run in others for figure in make(run))])
        first, more = drawn([*before, *every[:shown]]), drawn(every[shown:])
        return join(first, tag("details", tag("summary", "Other seeds"), more) if more else "")

    learning = drawn(learning_figures(groups))
    notes = [
        tag("p", said, class_=f"note {where}".strip())
        for said, where in ((how_to_read(groups), ""), (_ZOOM, "with-mouse"))
        if said
    ]
    below = [tag("p", said, class_="note") for said in (not_evaluated(groups), _BEST) if said]
    return [
        Section("results", "Results", join(finals(groups), *below)),
        Section("learning", "Learning", join(_switch(), learning, *notes) if learning else Markup("")),
        Section("peers", "Peers", per_run(accuracies, graph, before=[consensus_figure(groups)])),
        Section("layers", "Layers", per_run(layer_figures)),
        Section("data", "Data", per_run(client_figures)),
        Section("answers", "Answers", join(*(predictions(run) for group in groups for run in group.runs))),
        Section("runs", "What was run", join(glance(groups), differing(groups))),
        Section("options", "All options", folded(groups)),
    ]


_ZOOM = "Drag across a figure to look closer, double-click to go back; names in a legend hide and show."
_BEST = (
    "Of several seeds: mean ± standard deviation, n seeds; of answers of a single run the 95 % interval. "
    "“best” stands only where this interval does not overlap with that of any other finished run of the same "
    "model and data; of one seed alone nobody knows."
)


def _once(figures: Sequence[Figure]) -> list[Figure]:
    """Figures that show the same become one that names all their runs: seeds often share graph and data."""
    kept: list[Figure] = []
    for figure in figures:
        place = next((n for n, other in enumerate(kept) if other.traces == figure.traces), None)
        if place is None:
            kept.append(figure)
        else:
            runs = dict.fromkeys([*kept[place].runs, *figure.runs])
            kept[place] = replace(kept[place], runs=tuple(runs))
    return kept


def _switch() -> Markup:
    buttons = [
        tag("button", name, type="button", data_axis=name, aria_pressed="true" if place == 0 else "false")
        for place, name in enumerate(AXES)
    ]
    return tag("div", tag("span", "Over"), *buttons, class_="switch", role="group", aria_label="x axis")


def _figure(figure: Figure, number: int) -> Markup:
    ident = f"figure-{number}"
    drawn = {"data": figure.traces, "layout": figure.layout, "axes": figure.axes}
    text = json.dumps(compact(drawn), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag(
        "figure",
        tag("h3", figure.heading, id=f"{ident}-title"),
        tag(
            "div",
            class_="plot",
            id=ident,
            role="img",
            aria_label=figure.about,
            style=f"height:{figure.height}px",
        ),
        tag("ul", *(_entry(one, ident) for one in figure.legend), class_="legend") if figure.legend else "",
        tag("figcaption", figure.note) if figure.note else "",
        tag(
            "p",
            tag("button", "SVG", type="button", data_svg=ident, aria_label=f"SVG: {figure.heading}"),
            class_="export",
        ),
        tag("script", Markup(text), type="application/json", data_of=ident),
    )


def _entry(entry: Entry, ident: str) -> Markup:
    return tag(
        "li",
        tag(
            "button",
            _swatch(entry),
            tag("span", entry.label),
            type="button",
            aria_pressed="true",
            data_shows=ident,
            data_traces=" ".join(map(str, entry.traces)),
        ),
    )


def _swatch(entry: Entry) -> Markup:
    colour, _, opacity = entry.look.colour.removeprefix("@").partition("/")
    paint = f"color:var(--{colour});opacity:{opacity or 1}"
    if entry.filled:
        striped = "striped" if entry.striped else ""
        return tag("span", class_=f"fill {striped}".strip(), style=paint, aria_hidden="true")
    return tag(
        "svg",
        tag(
            "path",
            d="M1 6H31",
            stroke="currentColor",
            stroke_width="2",
            stroke_dasharray=_STROKES[entry.look.dash],
        ),
        tag("path", d=_POINTS[entry.look.marker], fill="currentColor"),
        style=paint,
        viewBox="0 0 32 12",
        width="32",
        height="12",
        aria_hidden="true",
    )
