"""Rows of local files. Every row keeps where it stands, so that an error can name the place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.config import UserError

SplitNames = Mapping[str, tuple[str, ...]]
# The names that a split's file may have before its extension; the first is the split's own.
SPLIT_NAMES: SplitNames = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")


class Located(NamedTuple):
    """A row and where it stands, such as ``"data/train.jsonl, line 3"``."""

    where: str
    row: Mapping[str, Any]


def read_local(data_dir: Path, names: SplitNames = SPLIT_NAMES) -> dict[str, list[Located]]:
    """Reads what a user gave as ``data_dir``: a folder of split files, a saved data set, or a single file.

    Args:
        data_dir: The folder or the file.
        names: The names that each split may have, in order of preference.

    Returns:
        Rows by split: "train" always, "validation" and "test" where there are such. A single file, or a data
        set saved without splits, is all "train".

    Raises:
        UserError: If there is nothing to read or it cannot be read.
    """
    found = _read(data_dir, "data_dir", names, "train")
    return found if isinstance(found, dict) else {"train": found}


def read_part(path: Path, split: str, *, option: str, names: SplitNames = SPLIT_NAMES) -> list[Located]:
    """Reads all of a single file or of a data set saved without splits, or one split where there are splits.

    Args:
        path: What `read_local` takes.
        split: "train", "validation" or "test".
        option: The option that gave the path, for messages.
        names: The names that each split may have, in order of preference.

    Raises:
        UserError: If there is nothing to read or it cannot be read.
    """
    found = _read(path, option, {split: names[split]}, split)
    return found[split] if isinstance(found, dict) else found


def _read(
    path: Path, option: str, names: SplitNames, needed: str
) -> dict[str, list[Located]] | list[Located]:
    if path.is_file():
        return read_file(path)
    if not path.is_dir():
        raise UserError(
            f"{option} '{path}' does not exist; give a folder with {needed}.jsonl, or a data file."
        )
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_saved(path, option, names, needed)
    files = _split_files(path, option, names)
    if needed not in files:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{option} '{path}' must hold {names[needed][0]}{'|'.join(EXTENSIONS)}, or be a folder that "
            f"save_to_disk wrote; it holds {held}."
        )
    return {split: read_file(file) for split, file in files.items()}


def read_file(path: Path) -> list[Located]:
    """Reads the rows of one jsonl, json, csv or parquet file.

    Raises:
        UserError: If the extension is unknown, the file is not what its extension says, or it has no rows.
    """
    readers = dict(zip(EXTENSIONS, (_read_jsonl, _read_json, _read_csv, _read_parquet), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"'{path}' has the extension '{path.suffix}'; data files are {', '.join(EXTENSIONS)}."
        )
    try:
        rows = [_located(where, row) for where, row in reader(path)]
    except UnicodeDecodeError as error:
        raise UserError(
            f"'{path}' is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    if not rows:
        raise UserError(f"'{path}' has no rows.")
    return rows


def _located(where: str, row: object) -> Located:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be an object with named fields, but is {str(row)[:60]!r}.")
    return Located(where, row)


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}, line {number}", _parse(line, f"{path}, line {number}")


def _read_json(path: Path) -> Iterator[tuple[str, object]]:
    content = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"'{path}' must hold a list of rows, or an object whose 'data' is such a list.")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f" line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}: not valid JSON ({error.msg},{place} column {error.colno}).") from error


def _read_csv(path: Path) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row:
                    raise UserError(
                        f"{where}: more cells than the header has ({len(reader.fieldnames or ())})."
                    )
                yield where, row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is not a readable parquet file ({error}).") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _split_files(folder: Path, option: str, names: SplitNames) -> dict[str, Path]:
    files = {}
    for split, stems in names.items():
        found = [
            path
            for path in sorted(folder.iterdir())
            if path.stem in stems and path.suffix.lower() in EXTENSIONS
        ]
        if len(found) > 1:
            listed = " and ".join(path.name for path in found)
            raise UserError(f"{option} '{folder}' has {listed}; one file per split, so leave one of them.")
        if found:
            files[split] = found[0]
    return files


def _read_saved(
    folder: Path, option: str, names: SplitNames, needed: str
) -> dict[str, list[Located]] | list[Located]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{option} '{folder}' is not a complete save_to_disk folder ({error}).") from error
    if isinstance(saved, dict):
        return rows_of(saved, str(folder), names, needed)
    if len(saved) == 0:
        raise UserError(f"'{folder}' has no rows.")
    return [Located(f"{folder}, row {number}", row) for number, row in enumerate(_named(saved), start=1)]


def rows_of(
    dataset: Mapping[str, Any], origin: str, names: SplitNames = SPLIT_NAMES, needed: str = "train"
) -> dict[str, list[Located]]:
    """Returns the rows by split of a data set of the `datasets` library.

    Args:
        dataset: A ``DatasetDict``, or any mapping from splits to data sets.
        origin: Its folder or its name on the hub, for messages.
        names: The names that each split may have, in order of preference.
        needed: The split that must be there.

    Raises:
        UserError: If it has no such split.
    """
    rows = {}
    for split, own_names in names.items():
        name = next((name for name in own_names if name in dataset), None)
        if name is not None:
            listed = enumerate(_named(dataset[name]), start=1)
            rows[split] = [Located(f"{origin}, split {name}, row {number}", row) for number, row in listed]
    if needed not in rows:
        raise UserError(
            f"'{origin}' has no split '{needed}'; it has {', '.join(map(str, dataset)) or 'none'}."
        )
    return rows


def _named(dataset: Any) -> list[dict[str, Any]]:
    """Returns the rows of a data set, with the names of classes in the place of its own numbers for them.

    The numbers mean nothing elsewhere: another data set may have the same classes in another order. -1, which
    stands for no class, stays.
    """
    features = dataset.features or {}
    names = {column: getattr(feature, "names", None) for column, feature in features.items()}
    named = {column: own for column, own in names.items() if own and not all(map(str.isdecimal, own))}
    return [
        row | {column: own[row[column]] for column, own in named.items() if row[column] not in (None, -1)}
        for row in dataset.to_list()
    ]
