"""How the processes of a run begin together: they meet, rank 0 builds first, the others do as it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedloom.observe.checkpoint import open_run
from fedloom.observe.record import RunRecord, read_run
from fedloom.runtimes.group import ALONE, Group
from fedloom.torchrun import place

C = TypeVar("C", bound=Any)
P = TypeVar("P")


@contextmanager
def processes(device: str) -> Iterator[Group]:
    """The processes of this run: those that torchrun started, or this one alone.

    Args:
        device: The option; with several processes each GPU has one.

    Raises:
        UserError: The device will not do for all of them.
    """
    here = place()
    if here.size == 1:
        yield ALONE
        return
    from fedloom.runtimes.meeting import joined

    with joined(here, device) as ranks:
        yield ranks


def open_together(folder: Path, config: Any, group: Group) -> Path | None:
    """As `open_run`; it is rank 0 that opens the folder, and chooses the checkpoint."""
    own = group.together(lambda: open_run(folder, config) if group.rank == 0 else None)
    found = group.share(None if own is None else str(own))
    return None if found is None else Path(found)


def build_together(build: Callable[[C, Group], tuple[C, P]], config: C, group: Group) -> tuple[C, P]:
    """Build the parts of a run, on rank 0 first.

    So a model is downloaded once, a mistake is told once, and all take what `auto` turned out to be there.

    Args:
        build: Makes the parts, and the config with what `auto` turned out to be.
        config: What the user wants.
        group: The run's processes.

    Raises:
        UserError: A mistake of the user, on any rank.
    """
    if group.size == 1:
        return build(config, group)
    own = replace(config, device=str(group.device))
    first = group.together(lambda: build(own, group) if group.rank == 0 else None)
    names = ("dtype", "wave_tokens")
    auto = group.share({name: getattr(first[0], name) for name in names} if first else {})
    resolved, parts = group.together(lambda: first or build(replace(own, **auto), group))
    return replace(resolved, device=config.device), parts


def recall(folder: Path, group: Group) -> RunRecord:
    """What the run has left, read by rank 0, whose folder it is."""
    own = vars(read_run(folder)) | {"folder": None} if group.rank == 0 else None
    return RunRecord(**{**group.share(own or {}), "folder": folder})
