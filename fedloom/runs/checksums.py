"""Checksums of a folder's files, so that a flipped bit is noticed before anything is computed from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedloom.runs.reading import Damaged, read_json

CHECKSUMS_FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Write SHA-256 of every file below a folder into a file in it: ``{relative path: hex digits}``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def verify(path: Path) -> None:
    """Make sure that a file is as it was written, where its folder or one above it has checksums.

    Folders of other programs have none, and neither have those of earlier versions.

    Raises:
        Damaged: Its content is not the one that was written.
    """
    for folder in path.parents[:2]:
        listed = folder / CHECKSUMS_FILE
        if not listed.is_file():
            continue
        sums = read_json(listed)
        name = path.relative_to(folder).as_posix()
        if not isinstance(sums, dict) or not isinstance(sums.get(name), str):
            raise Damaged(listed, f"it has no checksum of {name}")
        if sha256_of(path) != sums[name]:
            raise Damaged(path, f"its content is not what was written, as {CHECKSUMS_FILE} has it")
        return


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex digits.

    Raises:
        Damaged: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(path, error.strerror or "it cannot be read") from None
