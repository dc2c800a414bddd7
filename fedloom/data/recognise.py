"""From the rows of somebody's own data to a task: which format they have, and what its columns mean."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from fedloom.data.answers import normal_number
from fedloom.data.fields import ABSENT, Row, inner
from fedloom.data.formats import FORMATS, Format, classification, label_text
from fedloom.data.glue import has_no_labels
from fedloom.data.rows import Located
from fedloom.data.tasks import Task
from fedloom.errors import UserError, plain_console, shown
from fedloom.process import place

log = logging.getLogger(__name__)

LOOKED_AT = 100
"""Rows whose columns are looked at: a row of JSON may lack those that it has no use for."""
MOST_CLASSES = 1000
_DEFAULT_NAME = re.compile(r"\d+")


class Unrecognised(ValueError):
    """Rows of no form that is known; the message says what there is and what is needed."""


def recognised(task: Task, rows: Sequence[Located], others: Sequence[Sequence[Located]] = ()) -> Task:
    """Returns the task that rows of a user's own make: how they are read, and what a model is told to do.

    Args:
        task: Its `data_format` and `columns` are the user's word on it.
        rows: Training rows.
        others: More rows of the same data, of other splits and clients: classes are counted over all.

    Raises:
        UserError: If the rows have no format that is known, or lack a column that is named.
    """
    where, first = rows[0]
    for name, column in task.columns.items():
        if all(inner(row, column) is ABSENT for _, row in rows[:LOOKED_AT]):
            raise UserError(
                f"columns: {name}={column}, but {where} has no column '{shown(column)}'; it has "
                f"{listed(first)}"
            )
    try:
        form = recognise([task.mapped(row) for _, row in rows[:LOOKED_AT]], task.data_format)
    except Unrecognised as error:
        raise UserError(f"{where}: the columns are {listed(first)}, {error}.") from error
    found = replace(
        task,
        data_format=form.name,
        fields=(*form.columns, "label") if form.name == "classification" else form.columns,
        to_example=form.read,
        keep=form.learns,
        instruction=form.instruction,
    )
    names = _classes(found, [rows, *others]) if form.name == "classification" else ()
    _tell(found, form, rows[:LOOKED_AT], names)
    return replace(found, label_names=names)


def _classes(task: Task, groups: Sequence[Sequence[Located]]) -> tuple[str, ...]:
    """The classes that rows have: numbers by their size, names by the alphabet."""
    found: set[str] = set()
    for rows in groups:
        mapped = [task.mapped(row) for _, row in rows]
        if has_no_labels(mapped):  # the test split of a competition
            continue
        for (where, _), row in zip(rows, mapped, strict=True):
            try:
                found.add(label_text(row))
            except ValueError as error:
                raise UserError(f"{where}: {error}.") from error
    if not 1 < len(found) <= MOST_CLASSES:
        limit = task.limits.get("train")
        read = f" in the first {limit:,} rows (train_limit)" if limit else ""
        raise UserError(
            f"{groups[0][0].where}: the column of labels has {len(found)} different values{read}, and 2 to "
            f"{MOST_CLASSES} are classes; name another with --columns label=COLUMN, or the format with "
            f"--data_format{', or raise --train_limit' if read else ''}"
        )
    alike: dict[str, str] = {}
    for name in sorted(found):
        if (other := alike.setdefault(name.casefold(), name)) != name:
            log.warning(
                "%s: the labels '%s' and '%s' differ in their case alone, and are two classes; write them "
                "alike if they are one",
                groups[0][0].where,
                shown(other),
                shown(name),
            )
    numbers = all(_DEFAULT_NAME.fullmatch(name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))


def _tell(task: Task, form: Format, rows: Sequence[Located], names: Sequence[str]) -> None:
    """Says in one line how the data are read."""
    where = rows[0].where
    there = {name for _, row in rows for name in task.mapped(row)}
    read = [*task.fields, *(name for name in form.optional if name in there)]
    columns = [f"{name} = {task.columns[name]}" if name in task.columns else name for name in read]
    classes = f"; {len(names)} classes: {shown(', '.join(names), 200)}" if names else ""
    origin = where.rpartition(", ")[0] or where
    say(f"data {origin}: format {form.name}, from the columns {', '.join(map(shown, columns))}{classes}")


def say(line: str) -> None:
    """Tells the user, once, and the log, how data are taken."""
    log.info("%s", line)
    if place().leads:
        plain_console().print(line, soft_wrap=True)


def listed(row: object) -> str:
    """The names of a row's fields, those of a wide table not all."""
    assert isinstance(row, dict)
    names = [f"'{shown(name)}'" for name in row]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def recognise(rows: Sequence[Row], name: str = "auto") -> Format:
    """Finds the form of rows.

    Args:
        rows: Some of them, with their columns as they are mapped.
        name: The form that they are said to be, "auto" for any.

    Raises:
        Unrecognised: If it is none.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    if name == "language_modeling":
        return FORMATS["messages" if "messages" in columns else "text"]
    if name == "classification" or (name == "auto" and _is_labelled(columns)):
        return classification(_texts(rows, columns))
    if name != "auto":
        return FORMATS[name]
    for form in FORMATS.values():
        if all(column in columns for column in form.columns):
            return form
    needed = "; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMATS.values())
    raise Unrecognised(
        f"which make no known format ({needed}; classification: label and a text); say which column is "
        f"which, as in --columns {_guess(columns)}"
    )


_OTHER_NAMES = {
    "messages": ("conversation", "dialogue", "dialog", "chat", "conversations"),
    "conversations": ("conversation", "items", "dialogue"),
    "prompt": ("question", "query", "input", "problem", "user"),
    "completion": ("response", "answer", "output", "reply", "target", "text"),
    "chosen": ("accepted", "preferred", "response_chosen"),
    "rejected": ("dispreferred", "response_rejected"),
    "question": ("query", "input", "problem", "q"),
    "answer": ("response", "output", "solution", "a"),
    "output": ("response", "answer"),
    "text": ("content",),
    "input": ("context",),
    "system": ("system_prompt", "system_message"),
}
"""Names that people give to the columns of formats."""


def _guess(columns: Collection[str]) -> str:
    """What to write after --columns, by names that others use; an example where none looks like one."""
    plain = {column.strip().lower(): column for column in columns}
    for form in FORMATS.values():
        found = {
            name: next(
                (plain[known] for known in (name, *_OTHER_NAMES.get(name, ())) if known in plain), None
            )
            for name in (*form.columns, *form.optional)
        }
        found = {name: column for name, column in found.items() if column is not None}
        if all(name in found for name in form.columns) and len(set(found.values())) == len(found):
            return ",".join(f"{name}={column}" for name, column in found.items() if name != column)
    return "question=instr,answer=out"


def _is_labelled(columns: Collection[str]) -> bool:
    """Whether rows are texts with their class, and no other form, which may have labels too."""
    others = (form.columns for form in FORMATS.values() if form.name != "text")
    return "label" in columns and not any(all(name in columns for name in needed) for needed in others)


def _texts(rows: Sequence[Row], columns: Collection[str]) -> tuple[str, ...]:
    """The columns to read of labelled texts: ``text`` where there is one, else all that hold words."""
    if "text" in columns:
        return ("text",)
    found = tuple(name for name in columns if any(_holds_words(name, row.get(name)) for row in rows))
    if not found:
        raise Unrecognised(
            "of which none holds the text to classify; say which it is, as in --columns "
            "text=review,label=stars"
        )
    return found


def _holds_words(name: str, value: object) -> bool:
    # What begins with "label" is the answer in other words (label_text, label_name), or who gave it.
    if name.lower().startswith("label") or name.lower() in _NO_TEXTS or name.lower().endswith("_id"):
        return False
    return isinstance(value, str) and bool(value.strip()) and normal_number(value) is None


_NO_TEXTS = ("id", "idx", "index", "uid", "guid", "uuid", "split", "source")
