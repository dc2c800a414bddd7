"""Who holds what among peers without a server: their own folders, or a split of the task's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedloom.data.clients import load_clients, load_validation, path_of, paths_of
from fedloom.data.example import Example
from fedloom.data.own import open_task
from fedloom.data.tasks import Task
from fedloom.options.graph import DflConfig
from fedloom.options.own_data import column_names
from fedloom.options.peer import PeerConfig
from fedloom.training.division import divided, published_validation, splits_and_values

Setting = DflConfig | PeerConfig


@dataclass(frozen=True)
class PeerExamples:
    """Who holds what: training examples per peer, and one list of validation examples, or one per peer."""

    train: list[list[Example]]
    validation: list[list[Example]]


def open_data(config: Setting, only: int | None = None) -> Task:
    """What the options say of the data, and where the peers hold their own, what those are.

    Args:
        config: What the user wants.
        only: As for `hold`.
    """
    template, peers = config.dataset_path_template, config.num_clients
    if only is not None and template is not None:
        template, peers = path_of(template, only + 1), 1
    return open_task(
        config.dataset_type,
        data_dir=config.data_dir,
        data_format=config.data_format,
        columns=column_names(config.columns),
        client_paths=paths_of(template, peers),
        limits=config.limits,
        token=config.token,
    )


def hold(config: Setting, task: Task, only: int | None = None) -> PeerExamples:
    """Read the peers' own data, or split the task's training data among them.

    Args:
        config: What the user wants.
        task: The data set.
        only: The one peer, from 0, whose own data the templates are to give; None: all. What is split here is
            split for all in any case.

    Raises:
        UserError: Data that cannot be found, read or split.
    """
    own, judged, peers = config.dataset_path_template, config.val_dataset_path_template, config.num_clients
    if only is not None:
        own, judged = own and path_of(own, only + 1), judged and path_of(judged, only + 1)
        peers = 1 if own else peers
    # The folders first: what is missing there is known at once, the hub takes its time.
    train = load_clients(own, peers, task) if own is not None else None
    validation = load_validation(judged, peers, task) if judged is not None else None
    data_set: dict[str, Any] = {
        "data_dir": config.data_dir,
        "seed": config.data_seed,
        "token": config.token,
    }
    if train is not None:
        return PeerExamples(train, validation or [published_validation(task, **data_set)])
    splits, values = splits_and_values(task, config.field, **data_set)
    labels = [example.label for example in splits.train]
    shares = divided(
        config, labels, config.num_clients, seed=config.data_seed, values=values, option="num_clients"
    )
    return PeerExamples(
        [[splits.train[i] for i in share] for share in shares], validation or [splits.validation]
    )
