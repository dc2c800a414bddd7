"""The tables of the page: what was run, with which options, and what came out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fedloom.report.groups import IGNORED, Group
from fedloom.report.markup import Markup, join, tag
from fedloom.report.results import METRICS, MORE_METRICS, Cell, Metric, results
from fedloom.runs.record import RunRecord

LONGEST_WORD = 16
"""Letters of a word that is never broken."""


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, class_: str | None = None
) -> Markup:
    """A table whose first column heads the rows; on a narrow page each row becomes a block of its own.

    Where even so it is wider than the page, it alone scrolls.
    """
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, data_label=head, class_=_breaks(cell))
                for head, cell in zip(heads[1:], row[1:], strict=True)
            ),
        )
        for row in rows
    ]
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
        class_=f"stacks {class_ or ''}".strip(),
    )
    export = [
        tag("button", kind, type="button", data_export=kind, aria_label=f"{kind}: {caption}")
        for kind in ("CSV", "LaTeX")
    ]
    return join(
        tag("div", made, class_="scrolls", tabindex="0", role="region", aria_label=caption),
        tag("p", *export, class_="export"),
    )


def _breaks(cell: str) -> str | None:
    """Long paths and names may break anywhere; what is short may not, or columns would shrink to letters."""
    if isinstance(cell, Markup):
        return None
    return "breaks" if max(map(len, re.split(r"[\s-]", cell))) > LONGEST_WORD else None


def glance(groups: Sequence[Group]) -> Markup:
    """Who is who: a row per group."""
    heads = ("Run", "Command", "Model", "Data", "Method", "Clients", "Rounds", "Seed", "State")
    rows = [
        (
            group.label,
            f"fedloom {group.first.command}",
            group.first.model,
            group.first.data,
            _method(group.first),
            str(group.first.options.get("num_clients") or group.first.options.get("client_num")),
            _distinct(str(run.rounds) for run in group.runs),
            ", ".join(group.seeds),
            _state(group),
        )
        for group in groups
    ]
    return table(heads, rows, "The runs on this page")


def _method(run: RunRecord) -> str:
    def values(*names: str) -> str:
        return ", ".join(option(run, name) for name in names)

    if run.command == "dfl":
        return f"{values('training_type')} on {values('name')}"
    if run.command == "peer":
        return f"{values('training_type')}, peer {values('client')} of a real graph"
    if run.options["train_mode"] == "local":
        return f"local, {values('peft')}"
    return values("train_mode", "fed_alg", "peft")


def _state(group: Group) -> Markup:
    if group.finished:
        return tag("span", "finished", class_="done")
    open_ = [run.name for run in group.runs if not run.finished]
    which = "" if len(group.runs) == 1 else f": {', '.join(open_)}"
    return tag("strong", f"not finished{which}", class_="open")


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def finals(groups: Sequence[Group]) -> Markup:
    """What came out: a row per group, the best marked; what matters less is folded."""
    more = _numbers(groups, MORE_METRICS, "Where the runs ended, more numbers")
    folded_more = tag("details", tag("summary", "More numbers"), more) if more else Markup("")
    return join(_numbers(groups, METRICS, "Where the runs ended"), folded_more)


def _numbers(groups: Sequence[Group], metrics: Sequence[Metric], caption: str) -> Markup:
    found = results(groups, metrics)
    if not found:
        return Markup("")
    rows = [
        (group.label, *(_shown(cells[place]) for cells in found.values()))
        for place, group in enumerate(groups)
    ]
    return table(("Run", *found), rows, caption, class_="numbers")


def not_evaluated(groups: Sequence[Group]) -> str:
    """Which runs `fedloom eval` has not judged; empty where it has judged all."""
    missing = [run for group in groups for run in group.runs if not run.evaluation]
    if not missing:
        return ""
    names = ", ".join(run.name for run in missing)
    return (
        f"Not evaluated: {names}. For answers to the test split: fedloom eval --adapter {missing[0].folder}"
    )


def _shown(cell: Cell) -> Markup:
    parts = [tag("strong" if cell.best else "span", cell.text, class_="number")]
    if cell.best:
        parts += [Markup(" "), tag("span", "best", class_="best")]
    if cell.spread:
        parts.append(tag("span", cell.spread, class_="spread"))
    return tag("span", *parts, class_="value")


def differing(groups: Sequence[Group]) -> Markup:
    """The options that differ among the groups that have them; nothing where none do."""
    names = dict.fromkeys(name for group in groups for name in group.first.options if name not in IGNORED)
    differ = [
        name
        for name in names
        if len({option(group.first, name) for group in groups if name in group.first.options}) > 1
    ]
    if not differ:
        return Markup("")
    title = "Options that differ"
    # The shorter way across the page.
    if len(groups) <= len(differ):
        rows = [(name, *(option(group.first, name) for group in groups)) for name in differ]
        return table(("Option", *(group.label for group in groups)), rows, title)
    rows = [(group.label, *(option(group.first, name) for name in differ)) for group in groups]
    return table(("Run", *differ), rows, title)


def option(run: RunRecord, name: str) -> str:
    """A run's option as one would type it; a dash where its command has no such option."""
    if name not in run.options:
        return "–"
    value = run.options[name]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def folded(groups: Sequence[Group]) -> Markup:
    """All options, versions and devices, closed until somebody opens them."""
    return join(*(_all_options(run) for group in groups for run in group.runs))


def _all_options(run: RunRecord) -> Markup:
    versions = {"folder": str(run.folder), "device": run.device or "–", **run.versions}
    return tag(
        "details",
        tag("summary", f"{run.name}, seed {run.seed}: all options, versions and device"),
        _pairs({name: option(run, name) for name in run.options}),
        tag("h4", "Versions and device"),
        _pairs(versions),
    )


def _pairs(pairs: Mapping[str, str]) -> Markup:
    lines = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items()]
    return tag("dl", *lines, class_="pairs")
