"""Whose the training data are: what the options of `fedloom.options.partition` come to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from fedloom.data.example import Example, Splits
from fedloom.data.partition import partition
from fedloom.data.skew import Shares
from fedloom.data.sources import Sourced, field_values, load_rows, load_splits, load_whole
from fedloom.data.tasks import Task
from fedloom.errors import UserError
from fedloom.options.partition import Partition

log = logging.getLogger(__name__)

_FEW = 0.1
"""Of the mean: a client with less than this share of it is told of."""


def splits_and_values(
    task: Task, field: str | None, *, data_dir: str | None, seed: int, token: str | None
) -> tuple[Splits, list[str] | None]:
    """A data set, and where a field keeps examples together, its value of each training example.

    Args:
        task: The data set.
        field: Of its rows; None: none does.
        data_dir: As for `load_splits`, like the next two.
        seed: Decides what is held out.
        token: Hub token.

    Raises:
        UserError: As `load_splits`, or a row lacks the field.
    """
    if field is None:
        return load_splits(task, data_dir=data_dir, seed=seed, token=token), None
    rows = load_whole(task, data_dir=data_dir, seed=seed, token=token)
    values = field_values(rows["train"], field)
    return Splits(**{split: [made.example for made in part] for split, part in rows.items()}), values


def published_validation(task: Task, *, data_dir: str | None, seed: int, token: str | None) -> list[Example]:
    """The data set's own validation split: one held out of its training data might be in a client's folder.

    Raises:
        UserError: There is none.
    """
    rows: dict[str, list[Sourced]] = {}
    if data_dir is not None or not task.brought:
        rows = load_rows(task, data_dir=data_dir, seed=seed, token=token)
    if "validation" not in rows:
        raise UserError(
            f"val_dataset_path_template: is needed beside dataset_path_template, because {task.name} has no "
            "validation split of its own"
        )
    return [made.example for made in rows["validation"]]


def divided(
    config: Partition,
    labels: Sequence[str],
    clients: int,
    *,
    seed: int,
    values: Sequence[Hashable] | None,
    option: str,
) -> Shares:
    """The indices of each client's examples; see `fedloom.data.partition.partition` for the arguments."""
    return partition(
        config.partition,
        labels,
        clients,
        seed=seed,
        alpha=config.alpha,
        min_size=config.min_size,
        labels_per_client=config.labels_per_client,
        values=values,
        option=option,
    )


def check_comparable(parts: Sequence[Sequence[Example]]) -> None:
    """Make sure that all examples are preferences, or none is: a run has one loss.

    Raises:
        UserError: Some are.
    """
    preferences = sum(bool(example.rejected) for part in parts for example in part)
    others = sum(map(len, parts)) - preferences
    if preferences and others:
        raise UserError(
            f"the data hold {preferences} preferences (chosen and rejected), which train with DPO, and "
            f"{others} examples that have one answer; give data of one kind to train and validate on, or "
            "name the format of all with --data_format"
        )


def check_sizes(config: Partition, sizes: Sequence[int]) -> None:
    """Make sure that every client has enough to train on, and say so where some have far less than others.

    Args:
        config: Has `min_size`.
        sizes: For each client how many training examples that are short enough it has.

    Raises:
        UserError: One has fewer than `min_size`.
    """
    smallest, largest, mean = min(sizes), max(sizes), sum(sizes) / len(sizes)
    client = sizes.index(smallest) + 1
    if smallest < config.min_size:
        raise UserError(
            f"min_size: {config.min_size}, but client {client} has {smallest} training examples, those "
            "longer than max_length left out; lower min_size, or take fewer clients, more data or a larger "
            "max_length"
        )
    if smallest < _FEW * mean:
        log.warning(
            "the %d clients have %d to %d training examples, client %d the fewest; --min_size asks for more "
            "(now %d)",
            len(sizes),
            smallest,
            largest,
            client,
            config.min_size,
        )


@contextmanager
def of_client(number: int) -> Iterator[None]:
    """Let a user's mistake in a client's own data say whose they are, counted from 1."""
    try:
        yield
    except UserError as error:
        raise UserError(f"client {number}: {error}") from None
