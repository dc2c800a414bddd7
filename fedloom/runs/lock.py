"""One process at a time writes into a run's folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fedloom.errors import UserError
from fedloom.runs.files import TEMPORARY, remove, write_atomically, writing

LOCK_FILE = ".lock"
HOLDER_FILE = ".holder.json"


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder; those that only read it need not ask.

    The kernel gives the lock back when the process ends, however it ends: a killed run leaves nothing to
    clean up. Unfinished files of one that was killed are removed.

    Args:
        folder: Made where it is missing.

    Raises:
        UserError: Another process writes there; says which, on which machine and since when.
        CannotWrite: The folder cannot be written.
    """
    with writing(folder, then="start again"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{folder}: {_holder(folder)} is writing here; wait until it has ended, stop it, or take "
                "another name for this one"
            ) from None
    try:
        for stray in folder.glob(f"{TEMPORARY}*"):
            remove(stray)
        write_atomically(folder / HOLDER_FILE, json.dumps(_myself()) + "\n", then="start again")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink()
        lock.release()


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    }


def _holder(folder: Path) -> str:
    """Who holds the lock, in words; it may not have said so yet."""
    try:
        who = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']},"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
