"""`fedloom view`: who has how many examples of which label, as a table and as a picture."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from rich.table import Table

from fedloom.data.fields import label_of
from fedloom.data.files import data_name, read_part
from fedloom.data.own import open_task
from fedloom.data.rows import Located
from fedloom.data.sources import read_examples
from fedloom.data.tasks import TASKS, Task
from fedloom.errors import UserError, plain_console, shown
from fedloom.options.own_data import column_names
from fedloom.runs.files import check_output, write_atomically, writing

RECORD = "split.json"
"""The file in which `fedloom split` writes down what it did."""

PICTURES = (".png", ".svg")
# Of Okabe and Ito (2008), told apart by colour-blind eyes too; the yellow, faint on white, last but black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#999999"
HATCHES = ("", "////")
LONGEST_NAME = 30
MOST_COLUMNS = 6
"""Labels that get a column of the table each."""
NO_LABEL = "no label"
OTHERS = "others"

Counts = Mapping[str, Mapping[str, int]]
"""For each client, by name, how many examples it has of each label."""


def run_view(folder: str | Path, output: str | Path | None = None) -> None:
    """Prints who has how many of which label, and draws it.

    Args:
        folder: Clients' data, ``client_1``, ``client_2`` and so on: folders or files, as `fedloom split` or
            others made them.
        output: Picture to write, .png or .svg; None: none.

    Raises:
        UserError: If there are no clients, their data cannot be read, or a picture cannot be drawn.
    """
    folder, output = Path(folder), Path(output) if output is not None else None
    if output is not None:
        check_picture(output)
    counts = count_clients(folder)
    console = plain_console()
    console.print(counts_table(counts, str(folder)))
    if output is not None:
        draw(counts, output)
        console.print(f"Picture: {output}", soft_wrap=True)


def check_picture(output: Path) -> None:
    """Judges whether a picture can be drawn, before anything is read."""
    if output.suffix.lower() not in PICTURES:
        raise UserError(f"output '{output}' ends in '{output.suffix}'; a picture is .png or .svg.")
    if find_spec("matplotlib") is None:
        raise UserError(f"output '{output}' needs matplotlib; pip install 'fedloom[plots]', or leave it out.")
    check_output(output, "clients.svg")


def count_clients(folder: Path) -> dict[str, dict[str, int]]:
    """Counts labels in a folder of clients' data, in the order of the clients' numbers.

    Labels have the names of the task that `fedloom split` wrote down; elsewhere they are what stands in the
    field ``label``.

    Raises:
        UserError: If there are no clients or their data cannot be read.
    """
    if not folder.is_dir():
        raise UserError(
            f"'{folder}' is not a folder; give one that holds client_1, client_2, ..., see `fedloom split`."
        )
    paths: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name if path.is_dir() else (data_name(path) or ("",))[0]
        if match := re.fullmatch(r"client_([0-9]{1,9})", name):
            if int(match[1]) in paths:
                both = f"{paths[int(match[1])].name} and {path.name}"
                raise UserError(f"'{folder}' has {both}, which are the same client; leave one of them.")
            paths[int(match[1])] = path
    if not paths:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"'{folder}' must hold client_1, client_2, ..., as `fedloom split` writes them; it holds {found}."
        )
    task = _task_of(folder, [paths[number] for number in sorted(paths)])
    labels = {
        f"client_{number}": _labels(read_part(paths[number], "train", option="client"), task)
        for number in sorted(paths)
    }
    return label_counts(labels, task)


def _task_of(folder: Path, paths: Sequence[Path]) -> Task | None:
    record = folder / RECORD
    if not record.is_file():
        return None
    try:
        options = json.loads(record.read_text(encoding="utf-8"))["options"]
        name, data_format, columns = (options.get(name) for name in ("data_name", "data_format", "columns"))
        known = name in TASKS or (isinstance(name, str) and data_format is not None)
        if not known:
            raise ValueError(f"there is no data set {name!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{record}' is not as `fedloom split` wrote it ({type(error).__name__}: {shown(error)}); mend "
            "it or remove it."
        ) from error
    return open_task(
        name,
        data_format=data_format or "auto",
        columns=column_names(columns),
        client_paths=paths,
        read_data=False,
    )


def _labels(rows: Sequence[Located], task: Task | None) -> list[str]:
    if task is None:
        return [_label(located) for located in rows]
    return [made.example.label for made in read_examples(task, rows)]


def _label(located: Located) -> str:
    try:
        return label_of(located.row)
    except ValueError as error:
        raise UserError(f"{located.where}: {error}.") from error


def label_counts(groups: Mapping[str, Sequence[str]], task: Task | None) -> dict[str, dict[str, int]]:
    """Counts each group's labels, all labels in the same order: the task's own, then others by name."""
    found = {name: Counter(label or NO_LABEL for label in labels) for name, labels in groups.items()}
    known = task.label_names if task is not None else ()
    others = sorted({label for counter in found.values() for label in counter} - set(known))
    # A task that can be classified but is not, as arithmetic without labels, has no use for empty columns.
    names = others if others == [NO_LABEL] else (*known, *others)
    return {name: {label: counter[label] for label in names} for name, counter in found.items()}


def counts_table(counts: Counts, title: str) -> Table:
    """Makes the table of clients, their examples and labels."""
    totals = _totals(counts)
    frequent = len(totals) > MOST_COLUMNS
    columns = [] if frequent or list(totals) == [NO_LABEL] else list(totals)
    table = Table(title=shown(title), caption=_caption(counts))
    table.add_column("client")
    table.add_column("examples", justify="right")
    for column in columns:
        table.add_column(shown(column, LONGEST_NAME), justify="right")
    if frequent:
        table.add_column("labels, most frequent first")
    for client, of_label in [*counts.items(), ("all", totals)]:
        cells = [str(of_label.get(name, 0)) for name in columns]
        if frequent:
            cells = [_most_frequent(of_label)]
        if client == "all":
            table.add_section()
        table.add_row(client, str(sum(of_label.values())), *cells)
    return table


def _totals(counts: Counts) -> dict[str, int]:
    totals: dict[str, int] = {}
    for of_label in counts.values():
        for label, number in of_label.items():
            totals[label] = totals.get(label, 0) + number
    return totals


def _caption(counts: Counts) -> str:
    sizes = [sum(of_label.values()) for of_label in counts.values()]
    if len(sizes) == 1:
        return "1 client"
    return f"{len(sizes)} clients, of {min(sizes)} to {max(sizes)} examples"


def _most_frequent(of_label: Mapping[str, int]) -> str:
    present = sorted(((number, label) for label, number in of_label.items() if number), reverse=True)
    more = f", {len(present) - 3} more" if len(present) > 3 else ""
    return ", ".join(f"{shown(label, LONGEST_NAME)} {number}" for number, label in present[:3]) + more


def draw(counts: Counts, output: Path) -> None:
    """Draws a stacked bar per client and writes it as .png or .svg, as `output` ends.

    More labels than there are distinct looks (16) are drawn as one, the rarest, in grey.

    Raises:
        UserError: If the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = _with_others(counts, len(COLOURS) * len(HATCHES))
    labels = list(_totals(counts))
    places = list(range(1, len(counts) + 1))
    width = min(max(6.4, 2.0 + 0.26 * len(counts)), 16.0)
    named = [_legend_name(label) for label in labels]
    columns = max(1, min(len(labels), int(width / (0.7 + 0.1 * max(map(len, named))))))
    figure = Figure(figsize=(width, 3.8 + 0.25 * -(-len(labels) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    below = [0] * len(counts)
    keys = []
    for number, label in enumerate(labels):
        heights = [of_label.get(label, 0) for of_label in counts.values()]
        colour = GREY if label == OTHERS else COLOURS[number % len(COLOURS)]
        hatch = "" if label == OTHERS else HATCHES[number // len(COLOURS)]
        bars = axes.bar(
            places, heights, bottom=below, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4
        )
        keys.append(bars.patches[0])
        below = [start + height for start, height in zip(below, heights, strict=True)]
    names = [name.removeprefix("client_") for name in counts]
    step = -(-len(names) // 50)  # beyond 50 numbers they would run into each other
    axes.set_xticks(places[::step], names[::step], fontsize=10 if len(names) <= 30 else 8)
    axes.set_xlim(0.4, len(names) + 0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("client")
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    if labels != [NO_LABEL]:
        legend = figure.legend(keys, named, loc="outside upper left", ncols=columns, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    # Without a date and with fixed ids, the same counts make the same file.
    metadata = {"Date": None} if output.suffix.lower() == ".svg" else {}
    drawn = BytesIO()
    with rc_context({"svg.hashsalt": "fedloom", "hatch.linewidth": 0.6}):
        figure.savefig(drawn, format=output.suffix[1:].lower(), dpi=150, metadata=metadata)
    then = "start again, or choose another place"
    with writing(output, then):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, drawn.getvalue(), private=True, then=then)


def _legend_name(label: str) -> str:
    """A label as the legend shows it: short, and without an underscore in front, which would hide it."""
    short = shown(label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…")
    return f" {short}" if short.startswith("_") else short


def _with_others(counts: Counts, most: int) -> Counts:
    """Joins the rarest labels to one where there are more than `most`."""
    totals = _totals(counts)
    if len(totals) <= most:
        return counts
    kept = set(sorted(totals, key=lambda label: -totals[label])[: most - 1])
    return {
        name: {label: number for label, number in of_label.items() if label in kept}
        | {OTHERS: sum(number for label, number in of_label.items() if label not in kept)}
        for name, of_label in counts.items()
    }
