"""Lines of text files, plain or packed with gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from fedloom.data.rows import LONGEST_ROW, check_file, check_unpacked, reason
from fedloom.errors import UserError

_PIECE = 1 << 20


def read_lines(path: Path, whole: bool = True) -> Iterator[str]:
    r"""Yields the lines of a file, with their ends (`\n`), without a byte order mark.

    Args:
        path: The file.
        whole: Whether all of them may be kept; else the file may be of any size, of which a line is kept.

    Raises:
        UserError: If it cannot be read, or a line is not UTF-8 text or is endless; the message has the line.
    """
    with _open(path, whole) as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            if len(line) > LONGEST_ROW:
                raise UserError(
                    f"{path}, line {number}: has more than {LONGEST_ROW >> 20} MiB, too much for an example."
                )
            yield _decoded(line, path, number)


def read_text_lines(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each line of a plain text that is not blank, as a row with the field ``text``, with its place.

    Raises:
        UserError: As `read_lines`.
    """
    for number, line in enumerate(read_lines(path, whole), start=1):
        if line.strip():
            yield f"{path}, line {number}", {"text": line.strip()}


def read_text(path: Path) -> str:
    """Returns what a file holds, without a byte order mark; errors are those of `read_lines`."""
    with _open(path) as file:
        return _decoded(file.read(), path, 1)


@contextmanager
def _open(path: Path, whole: bool = True) -> Iterator[IO[bytes]]:
    packed = path.suffix.lower() == ".gz"
    size = check_file(path, whole)
    try:
        if packed and whole:
            _check_packed(path, size)
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        what = "is not a complete gzip file" if packed else "cannot be read"
        raise UserError(f"'{path}' {what} ({reason(error)}).") from error


def _check_packed(path: Path, packed: int) -> None:
    """Unpacks once to count, since a gzip file cannot be trusted to say its size, and keeps nothing."""
    size = 0
    with gzip.open(path) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            check_unpacked(path, size, packed, "unpack it with gunzip")


def _decoded(content: bytes, path: Path, first_line: int) -> str:
    """Bytes as text; `first_line` is the number of the line that they begin with."""
    try:
        text = content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}, line {line}: is not UTF-8 text ({error.reason}); save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = first_line + text.count("\n", 0, text.index("\0"))
        raise UserError(
            f"{path}, line {line}: has NUL bytes, so it is damaged or is not UTF-8 text; save it as UTF-8."
        )
    return text
