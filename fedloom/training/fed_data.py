"""From a config to the data of a run as token ids, and who has what of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.clients import load_clients, load_validation, paths_of
from fedloom.data.encode import Tokens
from fedloom.data.example import Example, Splits
from fedloom.data.own import open_task
from fedloom.data.partition import for_server, iid
from fedloom.data.sources import load_splits
from fedloom.data.stamps import stamps
from fedloom.data.tasks import Task
from fedloom.evaluation.answering import Questions, questions_of, within_room
from fedloom.federation.attacks import Attackers, told_apart
from fedloom.model.fit import check_fit
from fedloom.model.layout import shared_prefix
from fedloom.options.fed import FedConfig
from fedloom.options.own_data import column_names
from fedloom.training.division import (
    check_sizes,
    divided,
    of_client,
    published_validation,
    splits_and_values,
)
from fedloom.training.setup import Reader, reader
from fedloom.training.shared import Shared

Deal = Callable[[FedConfig, Sequence[str]], tuple[np.ndarray, list[np.ndarray]]]
"""``(config, labels of the training examples) -> (the server's, each client's)``, as indices."""


@dataclass(frozen=True)
class FedExamples:
    """The examples that a process has.

    Attributes:
        splits: Those that are to be dealt out in its `train`.
        own: Instead, each client's own training examples; None where they are dealt out.
        values: Of each example to be dealt out, the value of the field that keeps examples together; None:
            there is no such field.
    """

    splits: Splits
    own: list[list[Example]] | None = None
    values: list[str] | None = None

    @property
    def train(self) -> list[list[Example]]:
        """All training examples: each client's own and then the server's, or one list that is dealt out."""
        return [*(self.own or []), self.splits.train]


@dataclass(frozen=True)
class Encoded:
    """A data set as token ids.

    Attributes:
        train, validation: Sequences to train on and to validate on.
        clients: For each client the indices of its training sequences.
        server: The indices of the training sequences that the server keeps; no client has them.
        reader: How examples became token ids.
        reading: A short name of that, the same for all who train together.
        questions: The validation problems that the model answers itself; None where it is never asked.
        triggered: Validation problems with the answers that an attacker wants.
    """

    train: list[Tokens]
    validation: list[Tokens]
    clients: list[np.ndarray]
    server: np.ndarray
    reader: Reader
    reading: str
    questions: Questions | None
    triggered: Sequence[Tokens] = ()

    @property
    def prefix(self) -> int:
        """How many tokens all prompts begin with."""
        return 0 if self.reader.form is None else shared_prefix([*self.train, *self.validation])


@dataclass(frozen=True)
class ClientData:
    """Whose data a process has.

    Attributes:
        load: The examples that it has.
        deal: Who has which of those that no client brings.
        open: The task that the data are.
    """

    load: Callable[[FedConfig, Task, Shared], FedExamples]
    deal: Deal
    open: Callable[[FedConfig, Shared], Task]


def fitting_data(
    config: FedConfig,
    task: Task,
    held: FedExamples,
    holdings: ClientData,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    classes: Sequence[str],
    shared: Shared,
    attackers: Attackers | None = None,
) -> Encoded:
    """Examples as token ids that a model can read; what is too long is left out, or cut to be classified.

    Args:
        config: What the user wants.
        task: The data set.
        held: The examples that this process has.
        holdings: Whose they are.
        tokenizer: The model's.
        model: As its configuration has it; its weights are not looked at.
        classes: In the order of the outputs of the model's head; none where it writes answers.
        shared: What was read before.
        attackers: Who alters what it trains on, and how.

    Raises:
        UserError: They do not fit the model, or nothing is left, of all or of a client's own; the clients are
            more than the examples; or there is no such attack on them.
    """
    how = reader(config, task, tokenizer, classes, shared)
    long = 0

    def read(examples: list[Example], kinds: Sequence[str] | None = None) -> list[Tokens]:
        nonlocal long
        if not examples:
            return []
        if kinds is not None and how.form is not None:
            examples = [replace(e, label=kind) for e, kind in zip(examples, kinds, strict=True)]
        found, more = shared.once(Reader.read, how, examples)
        if kinds is not None and how.form is None:
            found = [tokens._replace(kind=kind) for tokens, kind in zip(found, kinds, strict=True)]
        long += more
        return found

    parts = []
    for number, part in enumerate(held.own or [], start=1):
        with of_client(number):
            parts.append(read(part))
    dealt, place = held.splits.train, list[int]()
    if attackers is not None and held.own is None:
        # What attackers alter is found by its number: reading may leave some out.
        kinds = held.values or [example.label for example in dealt]
        numbered = read(dealt, [str(i) for i in range(len(dealt))])
        place = [int(tokens.kind) for tokens in numbered]
        parts.append([_of_kind(tokens, kinds[i]) for tokens, i in zip(numbered, place, strict=True)])
    else:
        parts.append(read(dealt, held.values))
    train = [tokens for part in parts for tokens in part]
    how.warn_of_long(long, held.train, "training")
    long = 0
    validation = read(held.splits.validation)
    how.warn_of_long(long, [held.splits.validation], "validation")
    if held.own is None:
        server, clients = holdings.deal(config, [tokens.kind for tokens in train])
    else:
        server, clients = _in_turn(config, [len(part) for part in parts])
    if config.train_mode != "local" and any(map(len, clients)):
        check_sizes(config, [len(indices) for indices in clients])
    questions = None
    if how.form is not None and config.eval_generate_every:
        questions = questions_of(validation, config.eval_generate_limit, how.form.end)
    word = how.name([*train, *validation])
    data = Encoded(train, validation, clients, server, how, word, questions)
    if attackers is not None:
        data = _attacked(config, task, held, data, attackers, place, read)
    virtual = 0 if config.peft == "lora" else config.virtual_tokens
    texts = [side.ids for tokens in (*data.train, *data.validation, *data.triggered) for side in tokens.sides]
    check_fit(model, tokenizer, texts, max_length=config.max_length, virtual=virtual)
    if data.questions:
        data = replace(data, questions=within_room(data.questions, model, virtual))
    return data


def _attacked(
    config: FedConfig,
    task: Task,
    held: FedExamples,
    data: Encoded,
    attackers: Attackers,
    place: Sequence[int],
    read: Callable[..., list[Tokens]],
) -> Encoded:
    """The data with what attackers made of theirs; who has what is divided as without them.

    Args:
        config: What the user wants.
        task: The data set.
        held: The examples that this process has.
        data: Those as they are.
        attackers: Who alters what it trains on, and how.
        place: For each sequence that is dealt out which of the examples it is of.
        read: Makes token ids of examples.
    """
    if attackers.attack.poison is attackers.attack.probe is None:
        return data
    dealt = held.splits.train
    classes = task.label_names
    if data.reader.form is not None:
        classes = told_apart(classes, [one for part in held.train for one in part])
    train, clients = list(data.train), list(data.clients)
    for client in sorted(attackers.clients):
        honest = held.own[client] if held.own is not None else [dealt[place[i]] for i in clients[client]]
        if (poisoned := attackers.poisoned(client, honest, classes)) is not honest:
            tokens = read(poisoned)
            clients[client] = np.arange(len(train), len(train) + len(tokens))
            train += tokens
    triggered: list[Tokens] = []
    if attackers.attack.probe is not None:
        looked_at = held.splits.validation[: config.val_limit]
        triggered = read(attackers.attack.probe(looked_at, classes))
    return replace(data, train=train, clients=clients, triggered=triggered)


def _of_kind(tokens: Tokens, kind: str) -> Tokens:
    rejected = tokens.rejected and tokens.rejected._replace(kind=kind)
    return tokens._replace(kind=kind, rejected=rejected)


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


def _deal(config: FedConfig, labels: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
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


def _in_turn(config: FedConfig, sizes: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Who has which training examples where they stand client after client, and then the server's."""
    ends = np.cumsum(sizes)
    *clients, server = (np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    return server, [np.concatenate(clients)] if config.train_mode == "local" else clients


ALL_CLIENTS = ClientData(_load, _deal, _open)
"""One data set, dealt over the server and all clients; or the clients' own."""

SERVER_ALONE = ClientData(
    _load,
    lambda config, labels: (np.arange(len(labels)), [np.empty(0, dtype=np.int64)] * config.client_num),
    _open,
)
"""A server's own data set, where clients keep theirs."""
