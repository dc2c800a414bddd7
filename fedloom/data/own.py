"""What the name of a data set means: a task that is known, a data set on the hub, or files of the user's.

gsm8k                    a task of `fedloom.data.tasks`
qa                       the user's own data, in data_dir
data/chat.jsonl          a file; or a folder, a glob as data/*.parquet, a folder that save_to_disk wrote
owner/name               any data set on the hub; owner/name:config where it has several configurations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from fedloom.data.files import GLOB, data_name, read_local, read_part
from fedloom.data.recognise import recognised
from fedloom.data.rows import SPLIT_NAMES, Limits, Located
from fedloom.data.sources import read_hub
from fedloom.data.tasks import TASKS, Task


def open_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    client_paths: Sequence[str | Path] = (),
    read_data: bool = True,
    limits: Limits = MappingProxyType({}),
    token: str | None = None,
) -> Task:
    """Returns the task that a name means; own data are read, since their columns say what they are.

    Args:
        name: As ``--data_name`` takes it.
        data_dir: Local data, instead of those that the name means.
        data_format: The format of the user's own data, "auto" for what their columns say; a known task has
            its own.
        columns: For each field the column that has it, where the column's name is another.
        client_paths: The data that clients hold already: looked at where there are no others, and for the
            classes of labelled texts.
        read_data: Whether the data set that the name means is there; else only `client_paths` are.
        limits: How many rows of a split are read at most; "train" counts for each client's own too.
        token: Hub token.

    Raises:
        UserError: If there is no such data, or they have no format that is known.
    """
    task = replace(_named(name), columns=dict(columns or {}), limits=limits)
    if not task.own:
        return task
    task = replace(task, data_format=data_format)
    rows = _rows(task, data_dir, token) if read_data else None
    read = partial(read_part, split="train", option="client's data", limit=limits.get("train"))
    clients = [read(Path(path)) for path in client_paths[:1]]
    if rows is None and not clients:
        return task
    first, *others = [*(rows or {}).values(), *clients]
    found = recognised(task, first, others)
    if found.data_format == "classification" and len(client_paths) > 1:
        every = [read(Path(path)) for path in client_paths[1:]]
        found = recognised(replace(task, data_format="classification"), first, [*others, *every])
    return replace(found, given=rows)


def _named(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    users_own = TASKS["qa"]
    if is_own_files(name):
        return replace(users_own, name=name)
    hub, _, config = name.partition(":")
    return replace(users_own, name=name, hub=hub, hub_config=config or None)


def is_own_files(name: str) -> bool:
    """Tells whether a data set's name is one of files: they are there, or it looks as paths do."""
    if name in TASKS:
        return False
    path = Path(name).expanduser()
    looks = name.startswith(("/", ".", "~")) or any(sign in name for sign in GLOB) or name.count("/") > 1
    return looks or data_name(path) is not None or path.exists()


def _rows(task: Task, data_dir: str | Path | None, token: str | None) -> dict[str, list[Located]] | None:
    if data_dir is not None:
        return read_local(Path(data_dir), limits=task.local_limits)
    if task.hub:
        return read_hub(task, token)
    if task.name in TASKS:
        return None
    return read_local(Path(task.name).expanduser(), SPLIT_NAMES, "data_name", task.local_limits)
