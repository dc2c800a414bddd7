"""A row of data and the place where it stands, so that every error can name it; and limits on what is read.

The limits are far above any data that a language model is tuned on. Without them a few kilobytes could fill
the memory: files that are packed, or that say a value once and that it comes a million times.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from fedloom.errors import UserError, shown

SplitNames = Mapping[str, tuple[str, ...]]
SPLIT_NAMES: SplitNames = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""The names that a split's file may have before its extension; the first is the split's own."""
Limits = Mapping[str, int]
"""Of a split no more than so many rows are read, from the first on; of one that has no limit all are."""

DEEPEST = 50
"""Lists and objects inside each other, in a field."""
LONGEST_ROW = 64 << 20
"""Bytes of one row in a text file."""
LARGEST_UNPACKED = 256 << 20
"""Bytes that a packed file may hold whatever its size."""
MOST_UNPACKED = 100
"""How many times its size a larger one may hold; text shrinks to a third or a tenth."""


class Located(NamedTuple):
    """A row and where it stands, such as ``"data/train.jsonl, line 3"``."""

    where: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Flaw:
    """What a reader puts in a value's place that cannot be read, so that `locate` tells its place.

    Attributes:
        what: Such as "a number of 5,000 digits".
    """

    what: str


def locate(where: str, row: object) -> Located:
    """Makes a row of what a file holds.

    Raises:
        UserError: If it has no named fields, or a field has a flaw, half of a surrogate pair, or is nested
            too deeply.
    """
    if isinstance(row, Flaw):
        raise UserError(f"{where}: the row has {row.what}.")
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be an object with named fields, but is {shown(row)!r}.")
    for field, value in row.items():
        if isinstance(value, str) and value.isascii() and field.isascii():
            continue  # nearly all of them
        _check(where, "a field's name", field, 0)
        _check(where, f"field '{shown(field)}'", value, 0)
    return Located(where, row)


def _check(where: str, what: str, value: object, depth: int) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(
                f"{where}: {what} has half of a surrogate pair, as when an emoji was cut in two: "
                f"'{shown(value)}'; mend the text."
            )
    elif isinstance(value, Flaw):
        raise UserError(f"{where}: {what} has {value.what}.")
    elif isinstance(value, list | dict):
        if depth == DEEPEST:
            raise UserError(f"{where}: {what} is nested more than {DEEPEST} times; data for text is flat.")
        inside = value if isinstance(value, list) else [*value, *value.values()]
        for part in inside:
            _check(where, what, part, depth + 1)


def check_file(path: Path, whole: bool = True) -> int:
    """Judges whether a path is a file that can be read and, if `whole`, whether the memory could hold it.

    Returns:
        Its size in bytes.

    Raises:
        UserError: If it is not.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({reason(error)}).") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise UserError(f"'{path}' is {kind}, not a file; give a data file.")
    if whole:
        check_memory(path, found.st_size)
    return found.st_size


def check_memory(path: Path, size: int) -> None:
    """Judges whether the memory could hold so many bytes.

    Raises:
        UserError: If it could not; better told than killed by the system.
    """
    available = psutil.virtual_memory().available
    if size > available:
        raise UserError(
            f"'{path}' holds {size:,} bytes, but this machine has only {available:,} of free memory, and all "
            "rows are kept there; give a part of the data, or --train_limit N (not of .json and .tsv)."
        )


def check_unpacked(path: Path, size: int, packed: int, way_out: str) -> None:
    """Judges whether what a packed file holds is in proportion to its size.

    Args:
        path: The file.
        size: What it holds, in bytes.
        packed: Its size, in bytes.
        way_out: What to do where it is all right nevertheless.

    Raises:
        UserError: If it is not, or if the memory could not hold it.
    """
    if size > max(LARGEST_UNPACKED, MOST_UNPACKED * packed):
        raise UserError(
            f"'{path}' has {packed:,} bytes and would become {size:,} or more in memory, over "
            f"{MOST_UNPACKED} times as many, which looks like a mistake or an attack; if not, {way_out}."
        )
    check_memory(path, size)


def reason(error: Exception) -> str:
    """Why the system, or a library, could not read a file."""
    return shown(error.strerror if isinstance(error, OSError) and error.strerror else error, 200)
