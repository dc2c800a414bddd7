"""Data that the clients hold already: a folder or a file for each, found by a template."""

from __future__ import annotations

import re
from pathlib import Path

from fedloom.data.example import Example
from fedloom.data.files import read_part
from fedloom.data.sources import read_examples
from fedloom.data.tasks import Task
from fedloom.errors import UserError

PLACEHOLDERS = ("{i}", "{}")
"""What stands for a client's number; clients count from 1."""


def load_clients(
    template: str, num_clients: int, task: Task, *, counted_by: str = "num_clients"
) -> list[list[Example]]:
    """Loads each client's training examples.

    Args:
        template: Path with ``{i}`` or ``{}`` for the client's number, 1 to `num_clients`: a folder that
            ``save_to_disk`` wrote, a jsonl, json, csv or parquet file, or a folder with ``train.*``.
        num_clients: How many clients there are.
        task: The data set, whose fields the rows have.
        counted_by: The option that gave the number of clients, for messages.

    Raises:
        UserError: If a client has no data (found before anything is read), or a row is not what the task
            needs.
    """
    check_varies(template, num_clients)
    option = "dataset_path_template"
    return _load(all_paths(template, num_clients, option, counted_by), "train", task, option)


def load_validation(
    template: str, num_clients: int, task: Task, *, counted_by: str = "num_clients"
) -> list[list[Example]]:
    """Loads the examples to validate on: as `load_clients`, but ``validation.*`` of a folder with several.

    Returns:
        A list for each client where the template has ``{i}`` or ``{}``, else a single one that all share.

    Raises:
        UserError: As `load_clients` does, except that the template may be the same for all.
    """
    option = "val_dataset_path_template"
    paths = all_paths(template, num_clients if varies(template) else 1, option, counted_by)
    return _load(paths, "validation", task, option)


def path_of(template: str, client: int) -> str:
    """The path of a client, counted from 1."""
    # Not str.format, to which any other brace in a path would be an error.
    return template.replace("{i}", str(client)).replace("{}", str(client))


def paths_of(template: str | None, num_clients: int) -> list[str]:
    """Those of the clients' paths that exist, each once; none without a template."""
    paths = [] if template is None else [path_of(template, i) for i in range(1, num_clients + 1)]
    return [path for path in dict.fromkeys(paths) if Path(path).exists()]


def check_varies(template: str, num_clients: int) -> None:
    """Make sure that a template gives each client its own path.

    Raises:
        UserError: It has no place for the client's number.
    """
    if not varies(template) and num_clients > 1:
        raise UserError(
            f"dataset_path_template '{template}' is the same for all {num_clients} clients; write {{i}} "
            "where the client's number goes, such as data/client_{i}."
        )


def varies(template: str) -> bool:
    """Whether a template has a place for the client's number."""
    return any(mark in template for mark in PLACEHOLDERS)


def all_paths(template: str, num_clients: int, option: str, counted_by: str) -> list[Path]:
    """The clients' paths, all of which exist.

    Raises:
        UserError: One does not.
    """
    if num_clients < 1:
        raise UserError(f"{counted_by} is {num_clients}; it must be at least 1.")
    paths = [Path(path_of(template, i)) for i in range(1, num_clients + 1)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        folder = Path(re.split(r"\{i?\}", template)[0] + "x").parent if varies(template) else paths[0].parent
        names = ", ".join(f"'{path}'" for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        clients = f" for {num_clients} clients, counted from 1," if varies(template) else ""
        raise UserError(
            f"{option} '{template}'{clients} needs {names}{more}, which cannot be found; {_content(folder)}. "
            f"Make clients' folders with `fedloom split`, or mend the template or {counted_by}."
        )
    return paths


def _content(folder: Path) -> str:
    """Says what a folder holds, in the order of the numbers in the names."""
    if not folder.is_dir():
        return f"there is no folder '{folder}' either"
    names = sorted(
        (path.name for path in folder.iterdir()),
        key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)],
    )
    listed = ", ".join(names[:10]) or "nothing"
    return f"'{folder}' holds {listed}{', ...' if len(names) > 10 else ''}"


def _load(paths: list[Path], split: str, task: Task, option: str) -> list[list[Example]]:
    loaded = []
    for path in paths:
        limit = task.limits.get("train") if split == "train" else None
        rows = read_part(path, split, option=option, names=task.split_names, limit=limit)
        loaded.append([made.example for made in read_examples(task, rows)])
    return loaded
