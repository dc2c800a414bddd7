"""Rows of parquet files, and of tables in Arrow's memory format, as the `datasets` library keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedloom.data.rows import check_file, check_unpacked, reason
from fedloom.errors import UserError, shown

ROWS_AT_ONCE = 1024
_ROWS_TO_MEASURE = 1 << 16
_BYTES_OF_A_ROW = 64  # an empty dict
_WAY_OUT = "write it as jsonl"


def read_parquet(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row with its place.

    Args:
        path: The file.
        whole: Whether all rows may be kept; else the file may be of any size, and a part of it is looked at
            at a time.

    Raises:
        UserError: If it is not parquet, would fill the memory, or a value cannot be read.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    size = check_file(path, whole)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if whole:
            _check_size(path, file.metadata, size)
        names = file.schema_arrow.names
        batches = file.iter_batches(ROWS_AT_ONCE)
        yield from rows_of_tables(batches, f"{path}, row", names)
    # Damaged files get the library to raise nearly anything, its own errors and Python's.
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"'{path}' is not a readable parquet file ({reason(error)}).") from error


def read_arrow(path: Path, whole: bool = True) -> Iterator[tuple[str, object]]:
    """Yields each row of a file in Arrow's own format, as a stream or for random access, with its place.

    Arguments are those of `read_parquet`.

    Raises:
        UserError: If it is not such a file, or a value cannot be read.
    """
    import pyarrow

    check_file(path, whole)
    try:
        source = pyarrow.OSFile(str(path))
        try:
            batches: Any = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            stored = pyarrow.ipc.open_file(source)
            batches = map(stored.get_batch, range(stored.num_record_batches))
        done = 0
        for batch in batches:
            batch.validate(full=True)  # a damaged file's offsets would lead anywhere in the process's memory
            pieces = pyarrow.Table.from_batches([batch]).to_batches(ROWS_AT_ONCE)
            yield from rows_of_tables(pieces, f"{path}, row", batch.schema.names, done)
            done += len(batch)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"'{path}' is not a readable arrow file ({reason(error)}).") from error


def rows_of_tables(
    tables: Iterable[Any], where: str, names: list[str], done: int = 0
) -> Iterator[tuple[str, object]]:
    """Yields each row of tables, or record batches, with its place.

    Args:
        tables: One after the other.
        where: What the place begins with; the number of the row follows, from 1.
        names: Of their columns.
        done: Rows before these.

    Raises:
        UserError: If a name stands twice, or a value has no counterpart in Python, such as a date in the year
            200000 or text that is not UTF-8.
    """
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"{where} 1: the table has '{shown(twice)}' twice; rename one of the columns.")
    for table in tables:
        try:
            rows = table.to_pylist()
        except Exception as error:
            raise _unreadable(table, where, done, error) from error
        for number, row in enumerate(rows, start=done + 1):
            yield f"{where} {number}", row
        done += len(rows)


def _unreadable(table: Any, where: str, done: int, error: Exception) -> UserError:
    """Finds the value that could not be read."""
    for name in table.schema.names:
        for number, value in enumerate(table.column(name), start=done + 1):
            try:
                value.as_py()
            except Exception as cause:
                return UserError(
                    f"{where} {number}: field '{shown(name)}' cannot be read ({reason(cause)}); mend it, "
                    "or leave the field out."
                )
    return UserError(f"{where} {done + 1} or later cannot be read ({reason(error)}).")


def _check_size(path: Path, metadata: Any, packed: int) -> None:
    """Judges what a parquet file would become in memory, before it is read.

    Its metadata say what it holds once its pages are unpacked, and how many values. But a text that comes
    again and again stands there once, and so these are counted.
    """
    size, texts = metadata.num_rows * _BYTES_OF_A_ROW, set()
    for column in range(metadata.num_columns):
        width = max(8, metadata.schema.column(column).length)
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(column)
            size += max(chunk.total_uncompressed_size, width * chunk.num_values)
            if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY":
                texts.add(chunk.path_in_schema)
    check_unpacked(path, size, packed, _WAY_OUT)
    for text in sorted(texts):
        for length in _lengths(path, text):
            size += length
            check_unpacked(path, size, packed, _WAY_OUT)


def _lengths(path: Path, column: str) -> Iterator[int]:
    """Bytes of the texts of a column, batch by batch, without making them."""
    import pyarrow.compute  # type: ignore[import-untyped]
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, read_dictionary=[column])
    for batch in file.iter_batches(_ROWS_TO_MEASURE, columns=[column]):
        parts = list(batch.columns)
        while parts:
            part = parts.pop()
            if isinstance(part, pyarrow.DictionaryArray):
                lengths = pyarrow.compute.binary_length(part.dictionary)
                yield pyarrow.compute.sum(lengths.take(part.indices)).as_py() or 0
            elif isinstance(part, pyarrow.StructArray):
                parts += part.flatten()
            elif isinstance(part, pyarrow.MapArray):
                parts += [part.keys, part.items]
            elif isinstance(part, pyarrow.ListArray | pyarrow.LargeListArray):
                parts.append(part.flatten())
