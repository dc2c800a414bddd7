"""Whose examples a process has, and who gets which of those that no client brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedloom.data.clients import load_clients, load_validation, paths_of
from fedloom.data.example import Example, Splits
from fedloom.data.own import open_task
from fedloom.data.partition import for_server, iid
from fedloom.data.sources import load_splits
from fedloom.data.stamps import stamps
from fedloom.data.tasks import Task
from fedloom.options.fed import FedConfig
from fedloom.options.own_data import column_names
from fedloom.training.division import divided, published_validation, splits_and_values
from fedloom.training.shared import Shared

Division = Callable[[FedConfig, Sequence[str]], tuple[np.ndarray, list[np.ndarray]]]
"""``(config, labels of the training examples) -> (the server's, each client's)``, as indices."""


@dataclass(frozen=True)
class FedExamples:
    """The examples that a process has.

    Attributes:
        splits: Those that are to be divided in its `train`.
        by_client: Instead, each client's own training examples; None where they are divided.
        values: Of each example to be divided, the value of the field that keeps examples together; None:
            there is no such field.
    """

    splits: Splits
    by_client: list[list[Example]] | None = None
    values: list[str] | None = None

    @property
    def train(self) -> list[list[Example]]:
        """All training examples: each client's own and then the server's, or one list that is divided."""
        return [*(self.by_client or []), self.splits.train]


@dataclass(frozen=True)
class ClientData:
    """Whose data a process has.

    Attributes:
        load: The examples that it has.
        divide: Who has which of those that no client brings.
        open: The task that the data are.
    """

    load: Callable[[FedConfig, Task, Shared], FedExamples]
    divide: Division
    open: Callable[[FedConfig, Shared], Task]


def open_data(config: FedConfig, client_paths: Sequence[str], shared: Shared, read_data: bool = True) -> Task:
    """What the options say of the data; see `fedloom.data.own.open_task`."""
    return shared.once(
        open_task,
        config.data_name,
        data_dir=config.data_dir,
        data_format=config.data_format,
        columns=column_names(config.columns),
        client_paths=client_paths,
        read_data=read_data,
        limits=config.limits,
        token=config.token,
    )


def _open(config: FedConfig, shared: Shared) -> Task:
    templates = (config.dataset_path_template, config.val_dataset_path_template)
    shared.begin(stamps(config.data_name, config.data_dir, templates, config.client_num))
    return open_data(config, paths_of(config.dataset_path_template, config.client_num), shared)


def _load(config: FedConfig, task: Task, shared: Shared) -> FedExamples:
    template, validation_template = config.dataset_path_template, config.val_dataset_path_template
    clients, count = config.client_num, "client_num"
    # The folders first: what is missing there is known at once, the hub takes its time.
    brought = None
    if template is not None:
        brought = shared.once(load_clients, template, clients, task, counted_by=count)
    validation = None
    if validation_template is not None:
        lists = shared.once(load_validation, validation_template, clients, task, counted_by=count)
        validation = [example for part in lists for example in part]
    data_set: dict[str, Any] = {"data_dir": config.data_dir, "seed": config.data_seed, "token": config.token}
    if brought is None:
        splits, values = shared.once(splits_and_values, task, config.field, **data_set)
        # A field's values are what clients differ in, so what they are divided by and counted with.
        return FedExamples(replace(splits, validation=validation or splits.validation), values=values)
    # As over Flower: gradient priority scores layers by the training data of a data set of the server's own.
    train = []
    if config.train_mode == "fedGradFocus":
        train = shared.once(load_splits, task, **data_set).train
    validation = validation or shared.once(published_validation, task, **data_set)
    return FedExamples(Splits(train, validation, []), brought)


def _divide(config: FedConfig, labels: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Who has which training examples: the server's, and each client's."""
    examples = len(labels)
    server, rest = np.empty(0, dtype=np.int64), np.arange(examples)
    if config.train_mode == "local":
        return server, iid(examples, 1, config.data_seed)
    if config.train_mode == "fedGradFocus":
        kept = max(config.batch_size, round(config.server_data_fraction * examples))
        server, rest = for_server(examples, config.client_num, kept, config.data_seed)
    if config.partition == "iid":
        shares = iid(len(rest), config.client_num, config.data_seed)
    else:
        among = [labels[i] for i in rest.tolist()]
        shares = divided(
            config, among, config.client_num, seed=config.data_seed, values=among, option="client_num"
        )
    return server, [rest[share] for share in shares]


ALL_CLIENTS = ClientData(_load, _divide, _open)
"""One data set, divided among the server and all clients; or the clients' own."""

SERVER_ALONE = ClientData(
    _load,
    lambda config, labels: (np.arange(len(labels)), [np.empty(0, dtype=np.int64)] * config.client_num),
    _open,
)
"""A server's own data set, where clients keep theirs."""
