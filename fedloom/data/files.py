"""Which files and folders a data set is read from, and by which reader."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from fedloom.data.arrow_rows import read_arrow, read_parquet
from fedloom.data.csv_rows import read_csv, read_tsv
from fedloom.data.json_rows import read_json, read_json_lines
from fedloom.data.rows import SPLIT_NAMES, Limits, Located, SplitNames, locate, reason
from fedloom.data.saved_sets import read_saved
from fedloom.data.text_files import read_text_lines
from fedloom.errors import UserError, shown
from fedloom.options.synonyms import path_meant

log = logging.getLogger(__name__)

_ALL_NAMES = tuple(name for names in SPLIT_NAMES.values() for name in names)
_READERS: dict[str, Callable[[Path, bool], Iterator[tuple[str, object]]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text_lines,
}
EXTENSIONS = tuple(_READERS)
_NEVER_PACKED = (".parquet", ".arrow")
FORMS = ", ".join(EXTENSIONS) + "; each but parquet and arrow also with .gz"
GLOB = "*?["
"""Signs of a pattern that stands for several files."""

# What stands behind a split's name where it lies in several files: -00000-of-00002, on the hub sometimes with
# sixteen more digits, or -1, _1.
_PART = re.compile(r"[-_.](?P<number>\d{1,9})(?:-of-(?P<of>\d{1,9}))?(?:-[0-9a-f]{16})?")


def data_name(path: Path) -> tuple[str, str] | None:
    """Name and extension of a data file, such as ``("train", ".jsonl.gz")``; None of any other file."""
    packed = path.suffix if path.suffix.lower() == ".gz" else ""
    inner = path.with_suffix("") if packed else path
    extension = inner.suffix.lower()
    if extension not in EXTENSIONS or (packed and extension in _NEVER_PACKED):
        return None
    return inner.stem, extension + packed.lower()


def read_local(
    data_dir: Path,
    names: SplitNames = SPLIT_NAMES,
    option: str = "data_dir",
    limits: Limits = MappingProxyType({}),
) -> dict[str, list[Located]]:
    """Reads what a user gave: a folder of files, a saved data set, a single file, or a pattern for several.

    Args:
        data_dir: The folder, the file or the pattern.
        names: The names that each split may have, in order of preference.
        option: The option that gave it, for messages.
        limits: How much of a split is read.

    Returns:
        Rows by split: "train" always, "validation" and "test" where there are such. A single file, files of
        which none has the name of a split, or a data set saved without splits, is all "train".

    Raises:
        UserError: If there is nothing to read or it cannot be read.
    """
    found = _read(data_dir, option, names, "train", limits)
    return found if isinstance(found, dict) else {"train": found}


def read_part(
    path: Path, split: str, *, option: str, names: SplitNames = SPLIT_NAMES, limit: int | None = None
) -> list[Located]:
    """Reads all of a single file or of a data set saved without splits, or one split where there are splits.

    Args:
        path: What `read_local` takes.
        split: "train", "validation" or "test".
        option: The option that gave the path, for messages.
        names: The names that each split may have, in order of preference.
        limit: The most rows that are read, from the first on; None: all.

    Raises:
        UserError: If there is nothing to read or it cannot be read.
    """
    limits = {} if limit is None else {split: limit}
    found = _read(path, option, {split: names[split]}, split, limits)
    return found[split] if isinstance(found, dict) else found


def _read(
    path: Path, option: str, names: SplitNames, needed: str, limits: Limits
) -> dict[str, list[Located]] | list[Located]:
    if matching := matches(path, option, needed):
        return _read_files(matching, path, option, names, needed, limits)
    if not path.is_dir():
        return read_file(path, limits.get(needed))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return read_saved(path, option, names, needed, limits)
    return _read_files(_entries(path), path, option, names, needed, limits)


def _read_files(
    entries: list[Path], path: Path, option: str, names: SplitNames, needed: str, limits: Limits
) -> dict[str, list[Located]] | list[Located]:
    """The rows of the files among `entries`, which lie in the folder `path` or match it."""
    files = _split_files(entries, path, option, names)
    if needed not in files:
        # Files with any names are one data set without splits; not where one has the name of another split.
        found = [entry for entry in entries if data_name(entry) and not entry.is_dir()]
        kinds = {name[1] for file in found if (name := data_name(file))}
        if len(kinds) == 1 and not any(file.name.startswith(_ALL_NAMES) for file in found):
            return _first(found, limits.get(needed))
        files = _files_below(entries, path, option, names, needed)
    return {split: _first(found, limits.get(split)) for split, found in files.items()}


def _first(files: Sequence[Path], limit: int | None) -> list[Located]:
    """The rows of files one after the other; with a limit no more is read than that needs."""
    rows: list[Located] = []
    for file in files:
        rows += read_file(file, None if limit is None else limit - len(rows))
        if len(rows) == limit:
            break
    return rows


def matches(path: Path, option: str, needed: str = "train") -> list[Path]:
    """What a pattern stands for; empty for the path of a file or folder, which is there.

    Args:
        path: What a user gave.
        option: The option that gave it, for messages.
        needed: The split that a folder must have, for messages.

    Raises:
        UserError: There is nothing, or it cannot be read.
    """
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        if path.exists() or path.is_symlink():
            return []
    except (OSError, ValueError) as error:
        raise UserError(f"{option} '{path}' cannot be read ({reason(error)}).") from error
    if not any(sign in str(path) for sign in GLOB):
        raise UserError(
            f"{option} '{path}' does not exist; give a folder with {needed}.jsonl, or a data "
            f"file{path_meant(path)}"
        )
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise UserError(f"{option} '{path}' matches no file; mend the pattern, or give a folder or a file.")
    return found


def read_file(path: Path, limit: int | None = None) -> list[Located]:
    """Reads the rows of one data file, or no more of them than a limit, from the first on.

    Raises:
        UserError: If the extension is unknown, the file is not what its extension says, or it has no rows.
    """
    found = data_name(path)
    if found is None:
        raise UserError(f"'{path}' has the extension '{shown(path.suffix)}'; data files are {FORMS}.")
    every = _READERS[found[1].removesuffix(".gz")](path, limit is None)
    rows = [locate(where, row) for where, row in islice(every, limit)]
    if not rows:
        raise UserError(f"'{path}' has no rows.")
    return rows


def _split_files(entries: list[Path], folder: Path, option: str, names: SplitNames) -> dict[str, list[Path]]:
    """The files of each split among what a folder has: one, or several that are numbered."""
    files = {}
    for split, stems in names.items():
        whole: list[list[Path]] = []
        parts: dict[tuple[str, str, str | None], list[tuple[int, Path]]] = {}
        for path in entries:
            if path.name in stems and path.is_dir():
                whole.append([inner for inner in _entries(path) if data_name(inner)])
                continue
            stem, extension = data_name(path) or ("", "")
            longest = max((name for name in stems if stem.startswith(name)), key=len, default=None)
            if longest is None:
                continue
            part = _PART.fullmatch(stem[len(longest) :])
            if stem == longest:
                whole.append([path])
            elif part is not None:
                parts.setdefault((longest, extension, part["of"]), []).append((int(part["number"]), path))
        groups = [*filter(None, whole), *([path for _, path in sorted(part)] for part in parts.values())]
        if len(groups) > 1:
            listed = " and ".join(shown(_within(group[0], folder)) for group in groups)
            raise UserError(
                f"{option} '{folder}' has {listed}; one file per split, or its numbered parts, so leave one."
            )
        for (longest, _, of), numbered in parts.items():
            _check_parts(folder, longest, of, [number for number, _ in numbered])
        if groups:
            files[split] = groups[0]
    return files


def _within(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; hidden files are other programs' business."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def _check_parts(folder: Path, name: str, of: str | None, numbers: list[int]) -> None:
    if len(set(numbers)) < len(numbers):
        raise UserError(f"'{folder}' has the same part of {name} in two files; leave one of them.")
    if of is not None and len(numbers) < int(of):
        log.warning(
            "%s has %d of the %d files of %s; the others are missing", folder, len(numbers), int(of), name
        )


def _files_below(
    entries: list[Path], folder: Path, option: str, names: SplitNames, needed: str
) -> dict[str, list[Path]]:
    """The files in the one folder below that has the needed split: the hub's are in ``data`` or ``main``."""
    below = {
        path.name: _split_files(_entries(path), path, option, names) for path in entries if path.is_dir()
    }
    found = {name: files for name, files in below.items() if needed in files}
    if len(found) > 1:
        raise UserError(
            f"{option} '{folder}' has {needed} in each of {', '.join(map(shown, found))}; give one of them."
        )
    if not found:
        entries_found = ", ".join(shown(entry.name) for entry in entries[:10]) or "nothing"
        raise UserError(
            f"{option} '{folder}' must hold {names[needed][0]}{'|'.join(EXTENSIONS)}, or be a folder that "
            f"save_to_disk wrote; it holds {entries_found}."
        )
    return next(iter(found.values()))
