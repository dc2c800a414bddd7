"""From the rows of somebody's own data to a task: which format they have, and what its columns mean."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from fedloom.data.formats import Format, Unrecognised, label_text, recognise
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
        if not any(column in row for _, row in rows[:LOOKED_AT]):
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
    _tell(found, form, where, first, names)
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
        raise UserError(
            f"{groups[0][0].where}: the column of labels has {len(found)} different values, and 2 to "
            f"{MOST_CLASSES} are classes; name another with --columns label=COLUMN, or the format with "
            "--data_format"
        )
    numbers = all(_DEFAULT_NAME.fullmatch(name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))


def _tell(task: Task, form: Format, where: str, row: object, names: Sequence[str]) -> None:
    """Says in one line how the data are read."""
    assert isinstance(row, dict)
    read = [*task.fields, *(name for name in form.optional if name in task.mapped(row))]
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
