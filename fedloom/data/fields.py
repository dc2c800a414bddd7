"""Fields of a row, each read as what it must be. A ValueError names the field; the caller adds the place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fedloom.data.answers import normal_number

Row = Mapping[str, Any]

_SHORTEST = 3
"""Letters of an abbreviation of a class's name."""


class NotLearnable(ValueError):
    """A row as it should be, from which nothing can be learned here: it is left out and counted."""


def is_missing(value: object) -> bool:
    """Tells whether a field holds nothing: no value, blank text, or pandas' NaN or an infinity."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (float, Decimal)) and not math.isfinite(value))


def text(row: Row, field: str) -> str:
    """Returns a field of text, without white space around it; a number is its digits, 18.0 those of 18.

    Raises:
        ValueError: If it holds nothing, or anything but text or a number.
    """
    value = row.get(field)
    if is_missing(value):
        raise ValueError(f"field '{field}' is empty")
    if isinstance(value, str):
        return value.strip()
    number = normal_number(value)
    if number is None:
        raise ValueError(f"field '{field}' must be text or a number, but is {_shown(value)}")
    return number


ABSENT = object()
"""What a row has where it has no such column."""


def inner(row: Row, column: str) -> object:
    """Returns what a column holds, `ABSENT` where there is none; ``answers.text`` is a part of one."""
    if column in row:
        return row[column]
    whole, _, part = column.partition(".")
    within = row.get(whole)
    return inner(within, part) if part and isinstance(within, Mapping) else ABSENT


def number(row: Row, field: str) -> str:
    """Returns a field that is a number, in plain form.

    Raises:
        ValueError: If it is none.
    """
    found = normal_number(row.get(field))
    if found is None:
        raise ValueError(f"field '{field}' must be a number, but is {_shown(row.get(field))}")
    return found


def label_of(row: Row, field: str = "label") -> str:
    """Returns a field by which rows are counted and divided, "" where it holds nothing; 0 is a label.

    Raises:
        ValueError: If it is anything but text, a number or a truth value.
    """
    value = row.get(field)
    if is_missing(value):
        return ""
    return str(value) if isinstance(value, bool) else text(row, field)


def class_name(row: Row, names: Sequence[str]) -> str:
    """Returns the name of the class that the field ``label`` gives, by its number or by its name.

    A number may be written as csv files of pandas have it, ``"1"``, 1.0 or ``"1.0"``, a name in any case,
    with any hyphens, and abbreviated: ``"Not-Entailment"``, ``"pos"``.

    Raises:
        ValueError: If there is no such class.
    """
    value = row.get("label")
    written = (
        ""
        if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal))
        else str(value).strip()
    )
    place: int | None = None
    if re.fullmatch(r"\d{1,9}(?:\.0*)?", written):
        place = int(written.partition(".")[0])
    elif (found := class_of(written, names)) is not None:
        place = names.index(found)
    if place is None or place >= len(names):
        listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ValueError(f"field 'label' must be one of {listed}, but is {_shown(value)}")
    return names[place]


def class_of(name: str, names: Sequence[str]) -> str | None:
    """Returns the one of `names` that `name` stands for, whole or abbreviated (``neg``), or None."""
    key = class_key(name)
    same = [known for known in names if class_key(known) == key]
    longer = [known for known in names if len(key) >= _SHORTEST and class_key(known).startswith(key)]
    return same[0] if same else longer[0] if len(longer) == 1 else None


def class_key(name: str) -> str:
    """Returns what is the same for ``Not-Entailment``, ``not_entailment`` and ``not entailment``."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _shown(value: object) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:60]}…"
