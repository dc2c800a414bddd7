"""Whether data files are still what they were."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from fedloom.data.clients import path_of
from fedloom.data.own import is_own_files

Stamp = frozenset[tuple[str, int, int]]
"""Path, bytes and time of change (ns) of every file that a path stands for; empty where nothing is."""

_DEEPEST = 3  # the farthest below a folder that a file of its data lies: data/train/part-0.parquet


def stamps(
    name: str, data_dir: str | None, templates: Iterable[str | None], num_clients: int
) -> dict[str, Stamp]:
    """What files are like now, for each path that options of data give.

    Args:
        name: As ``--data_name`` takes it; the package's own data and those on the hub have no stamp.
        data_dir: Local data, instead of those that the name means.
        templates: Paths of what clients hold, or None.
        num_clients: How many clients there are.
    """
    paths = [data_dir] if data_dir is not None else []
    if data_dir is None and is_own_files(name):
        paths = [str(Path(name).expanduser())]
    for template in filter(None, templates):
        paths += [path_of(template, client) for client in range(1, num_clients + 1)]
    return {path: _stamp(path) for path in dict.fromkeys(paths)}


def _stamp(path: str) -> Stamp:
    found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    return frozenset(stamp for one in found for stamp in _files(one, _DEEPEST))


def _files(path: str, deep: int) -> Iterator[tuple[str, int, int]]:
    with suppress(OSError):  # who reads it will say so
        if not os.path.isdir(path):
            about = os.stat(path)
            yield path, about.st_size, about.st_mtime_ns
        elif deep:
            for entry in os.listdir(path):
                if not entry.startswith("."):  # as where data are read
                    yield from _files(os.path.join(path, entry), deep - 1)
