"""Rows of tables in text: values with commas (RFC 4180) or semicolons between, or with tabs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from fedloom.data.rows import LONGEST_ROW
from fedloom.data.text_files import read_lines
from fedloom.errors import UserError, shown

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
Cells = Iterable[tuple[int, list[str]]]


def read_csv(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row with its place, the line in which it ends.

    Raises:
        UserError: If it is not CSV, or a name stands twice in its header.
    """
    lines = read_lines(path, whole)
    header = next(lines, "")
    # Spreadsheets write semicolons where a comma stands in numbers.
    between = ";" if ";" in header and "," not in header else ","
    return _rows(path, _cells(path, chain([header], lines), between))


def read_tsv(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row with its place.

    Tables with tabs come in two kinds. GLUE's have no quoting, a quotation mark there is text; what pandas
    and spreadsheets write has the quoting of CSV. A file is of the second kind if that is the only way in
    which its lines have as many cells as the header, or if every cell with a quotation mark in it is quoted:
    all are read in any case.

    Raises:
        UserError: As for `read_csv`.
    """
    lines = list(read_lines(path))
    cells = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    even = len({len(row) for row in cells}) == 1
    marked = [cell for row in cells for cell in row if '"' in cell]
    if not even or all(map(_QUOTED.fullmatch, marked)):
        return _rows(path, _cells(path, iter(lines), "\t"))
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return _rows(path, zip(numbers, cells, strict=True))


def _cells(path: Path, lines: Iterator[str], between: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and the line in which it ends."""
    # The limit is the module's own, for all its readers; by default a cell may have 131,072 characters.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    reader = csv.reader(lines, delimiter=between, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        why = "a quotation mark that is never closed" if "end of data" in str(error) else error
        raise UserError(f"{path}, line {begins}: not valid CSV ({why}).") from error


def _rows(path: Path, cells: Cells) -> Iterator[tuple[str, object]]:
    names: list[str] | None = None
    for line, row in cells:
        where = f"{path}, line {line}"
        if names is None:
            names = row
            twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
            if twice is not None:
                raise UserError(f"{where}: the header has '{shown(twice)}' twice; rename one of the columns.")
            continue
        if len(row) > len(names):
            raise UserError(f"{where}: more cells than the header has ({len(names)}).")
        values = [*row, *[None] * (len(names) - len(row))]
        # A column without a name, as pandas writes its index, is no field.
        yield where, {name: value for name, value in zip(names, values, strict=True) if name}
