"""Rows of data sets of the `datasets` library: of folders that `save_to_disk` wrote, and of what it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedloom.data.arrow_rows import ROWS_AT_ONCE, rows_of_tables
from fedloom.data.rows import SPLIT_NAMES, Limits, Located, SplitNames, locate, reason
from fedloom.errors import UserError


def read_saved(
    folder: Path, option: str, names: SplitNames, needed: str, limits: Limits
) -> dict[str, list[Located]] | list[Located]:
    """Reads a folder that `save_to_disk` wrote; for the arguments see `rows_of`.

    Raises:
        UserError: It is not whole, or a value cannot be read.
    """
    import datasets

    for path in folder.rglob("*"):
        if not path.is_file() and not path.is_dir():
            raise UserError(f"'{path}' is a broken link, a pipe or a device, which save_to_disk never wrote.")
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        if state.is_file() and not any(state.parent.glob("*.arrow")):
            raise UserError(f"'{state.parent}' has no rows, since no .arrow file lies in it.")
    # The library believes what the folder's JSON files say, and raises whatever comes of it.
    try:
        saved = datasets.load_from_disk(str(folder), keep_in_memory=not limits)
        # Arrow trusts a file's offsets; those of a damaged one would lead anywhere in the process's memory.
        for split, dataset in saved.items() if isinstance(saved, dict) else ((needed, saved),):
            part = next((name for name, others in names.items() if split in others), split)
            dataset.data.table.slice(0, limits.get(part)).validate(full=True)
        if isinstance(saved, dict):
            return rows_of(saved, str(folder), names, needed, limits)
        return _rows_of_one(saved, str(folder), limits.get(needed))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{option} '{folder}' is not a complete save_to_disk folder ({type(error).__name__}: "
            f"{reason(error)})."
        ) from error


def rows_of(
    dataset: Mapping[str, Any],
    origin: str,
    names: SplitNames = SPLIT_NAMES,
    needed: str = "train",
    limits: Limits = MappingProxyType({}),
) -> dict[str, list[Located]]:
    """Returns the rows by split of a data set of the `datasets` library.

    Args:
        dataset: A ``DatasetDict``, or any mapping from splits to data sets; they may be streamed.
        origin: Its folder or its name on the hub, for messages.
        names: The names that each split may have, in order of preference.
        needed: The split that must be there.
        limits: How much of a split is read.

    Raises:
        UserError: If it has no such split, a split has no rows, or a value cannot be read.
    """
    rows = {}
    for split, own_names in names.items():
        name = next((name for name in own_names if name in dataset), None)
        if name is not None:
            rows[split] = _rows_of_one(dataset[name], f"{origin}, split {name}", limits.get(split))
    if needed not in rows:
        raise UserError(
            f"'{origin}' has no split '{needed}'; it has {', '.join(map(str, dataset)) or 'none'}."
        )
    return rows


def _rows_of_one(dataset: Any, origin: str, limit: int | None) -> list[Located]:
    """The rows of a data set, with the names of classes in the place of its own numbers for them.

    The numbers mean nothing elsewhere: another data set may have the same classes in another order. -1, which
    stands for no class, stays.
    """
    dataset = dataset if limit is None else dataset.take(limit)
    features = dataset.features or {}
    names = {column: getattr(feature, "names", None) for column, feature in features.items()}
    named = {
        column: labels for column, labels in names.items() if labels and not all(map(str.isdecimal, labels))
    }
    tables = dataset.with_format("arrow").iter(ROWS_AT_ONCE)
    rows = [locate(*found) for found in rows_of_tables(tables, f"{origin}, row", list(features))]
    if not rows:
        raise UserError(f"'{origin}' has no rows.")
    return [
        Located(
            where,
            {
                **row,
                **{
                    column: labels[row[column]]
                    for column, labels in named.items()
                    if row[column] not in (None, -1)
                },
            },
        )
        for where, row in rows
    ]
