"""How the processes of a run begin together: they meet, rank 0 builds first, the others do as it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from fedloom.process import place, uncollected
from fedloom.runs.inputs import Inputs
from fedloom.runs.record import RunRecord, read_run
from fedloom.runs.run_folder import Opened, opened, write_run_config
from fedloom.runtimes.group import ALONE, Group
from fedloom.training.private import with_noise
from fedloom.training.provenance import device_name, versions

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
    own_place = place()
    if own_place.size == 1:
        yield ALONE
        return
    from fedloom.runtimes.meeting import joined

    with joined(own_place, device) as ranks:
        yield ranks


@contextmanager
def opened_together(folder: Path, config: C, group: Group) -> Iterator[Opened[C]]:
    """As `opened`; it is rank 0 that opens the folder and holds it, and chooses the checkpoint."""
    with ExitStack() as resources:
        other_ranks = Opened(config, None, {})
        run = group.together(
            lambda: resources.enter_context(opened(folder, config)) if group.rank == 0 else other_ranks
        )
        found = group.share(None if run.checkpoint is None else str(run.checkpoint))
        yield replace(run, checkpoint=None if found is None else Path(found))


def build_together(
    build: Callable[[C, Group, Inputs], tuple[C, P]], run: Opened[C], group: Group
) -> tuple[C, P, dict[str, str]]:
    """Build the parts of a run, on rank 0 first.

    So a model is downloaded once, a mistake is told once, and all take what `auto` turned out to be there.
    What they read must be the same.

    Args:
        build: Makes the parts, and the config with what `auto` turned out to be.
        run: What the user wants, and what the run has read so far.
        group: The run's processes.

    Returns:
        The config, the parts, and the digests of what they were made from.

    Raises:
        UserError: A mistake of the user, on any rank; or what is read is not what it was, or is on rank 0.
    """
    inputs = Inputs(run.inputs)
    if group.size == 1:
        return *build(run.config, group, inputs), inputs.found
    wanted = replace(run.config, device=str(group.device))
    first = group.together(lambda: build(wanted, group, inputs) if group.rank == 0 else None)
    names = ("dtype", "wave_tokens")
    auto = group.share({name: getattr(first[0], name) for name in names} if first else {})
    inputs = Inputs(group.share(inputs.found))
    resolved, parts = group.together(lambda: first or build(replace(wanted, **auto), group, inputs))
    return replace(resolved, device=run.config.device), parts, dict(inputs.before)


@contextmanager
def built(
    config: C, folder: Path, build: Callable[[C, Group, Inputs], tuple[C, Any]], group: Group
) -> Iterator[tuple[Opened[C], Any]]:
    """A run whose folder this run alone writes, with its config.yaml; and its parts.

    Args:
        config: What the user wants.
        folder: The run's.
        build: As for `build_together`.
        group: The run's processes.

    Raises:
        UserError: A mistake of the user.
    """
    with opened_together(folder, config, group) as run:
        run = replace(run, config=cast(C, with_noise(cast(Any, run.config))))
        with uncollected():
            resolved, parts, inputs = build_together(build, run, group)
        if group.rank == 0:
            write_run_config(folder, resolved, versions(), device_name(parts.model.device), inputs)
        yield replace(run, config=resolved), parts


def recall(folder: Path, group: Group) -> RunRecord:
    """What the run has left, read by rank 0, whose folder it is; what judged it before is not of it."""
    left = vars(read_run(folder, evaluation=False)) | {"folder": None} if group.rank == 0 else None
    return RunRecord(**{**group.share(left or {}), "folder": folder})
