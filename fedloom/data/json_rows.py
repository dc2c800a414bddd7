"""Rows of JSON: an object per line, a list of objects, or an object whose ``data`` is such a list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from fedloom.data.rows import Flaw
from fedloom.data.text_files import read_lines, read_text
from fedloom.errors import UserError, shown

MOST_DIGITS = 400
"""Digits of a whole number; the largest float has 309."""


def read_json_lines(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row with its place.

    Raises:
        UserError: If a line is not JSON.
    """
    for number, line in enumerate(read_lines(path, whole), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row, end = _value(line, _skip(line, 0), where)
            _check_end(line, end, where)
            yield where, row


def read_json(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row with its place; objects one after the other are taken too, as in a file of lines.

    The whole text is read in any case.

    Raises:
        UserError: If the file is not JSON, or of none of these forms.
    """
    text = read_text(path)
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _items(text, start + 1, path)
        return
    content, end = _value(text, start, str(path))
    if isinstance(content, dict) and end < len(text) and text[_skip(text, end) :][:1] == "{":
        yield from _one_after_the_other(text, start, path)
        return
    _check_end(text, end, str(path))
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(
            f"'{path}' must hold a list of rows, an object whose 'data' is one, or an object per line, "
            "which pandas writes with to_json(path, orient='records', lines=True)"
        )
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _items(text: str, place: int, path: Path) -> Iterator[tuple[str, object]]:
    """The items of the list that begins before `place`."""
    place, number = _skip(text, place), 0
    more = text[place : place + 1] != "]"
    while more:
        number += 1
        where = f"{path}, row {number}"
        row, place = _value(text, place, where)
        yield where, row
        place = _skip(text, place)
        more = text[place : place + 1] == ","
        if more:
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            raise _not_json(where, "a comma or ] must follow the row", text, place)
    _check_end(text, place + 1, str(path))


def _one_after_the_other(text: str, place: int, path: Path) -> Iterator[tuple[str, object]]:
    line, counted = 1, 0
    while place < len(text):
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}, line {line}"
        row, place = _value(text, place, where)
        yield where, row
        place = _skip(text, place)


def _value(text: str, place: int, where: str) -> tuple[Any, int]:
    """The value that begins at `place`, and where it ends."""
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _not_json(where, error.msg, text, error.pos) from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; data for text is flat.") from error


def _skip(text: str, place: int) -> int:
    return WHITESPACE.match(text, place).end()


def _check_end(text: str, place: int, where: str) -> None:
    rest = _skip(text, place)
    if rest < len(text):
        raise _not_json(where, "nothing more may follow", text, rest)


def _not_json(where: str, problem: str, text: str, place: int) -> UserError:
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    return UserError(
        f"{where}: not valid JSON ({problem},{f' line {line}' if line > 1 else ''} column {column})."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Flaw:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        return Flaw(f"'{shown(twice)}' twice; leave one of the values out")
    return content


def _whole_number(digits: str) -> int | Flaw:
    return (
        int(digits)
        if len(digits) <= MOST_DIGITS
        else Flaw(f"a number of {len(digits):,} digits, and {MOST_DIGITS} is the most; write it as text")
    )


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)
