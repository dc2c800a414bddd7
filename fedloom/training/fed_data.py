"""The examples of a run as token ids that its model can read, and who has what of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.encode import Tokens
from fedloom.data.example import Example
from fedloom.data.tasks import Task
from fedloom.evaluation.answering import Questions, questions_of, within_room
from fedloom.federation.attacks import Attackers, class_names
from fedloom.model.fit import check_fit
from fedloom.model.layout import shared_prefix
from fedloom.options.fed import FedConfig
from fedloom.training.division import check_sizes, of_client
from fedloom.training.fed_examples import ClientData, FedExamples
from fedloom.training.setup import Reader, reader
from fedloom.training.shared import Shared


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


def fitting_data(
    config: FedConfig,
    task: Task,
    examples: FedExamples,
    client_data: ClientData,
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
        examples: The examples that this process has.
        client_data: Whose they are.
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

    def read(part: list[Example], kinds: Sequence[str] | None = None) -> list[Tokens]:
        nonlocal long
        if not part:
            return []
        if kinds is not None and how.form is not None:
            part = [replace(e, label=kind) for e, kind in zip(part, kinds, strict=True)]
        found, more = shared.once(Reader.read, how, part)
        if kinds is not None and how.form is None:
            found = [tokens._replace(kind=kind) for tokens, kind in zip(found, kinds, strict=True)]
        long += more
        return found

    parts = []
    for number, part in enumerate(examples.by_client or [], start=1):
        with of_client(number):
            parts.append(read(part))
    to_divide, place = examples.splits.train, list[int]()
    if attackers is not None and examples.by_client is None:
        # What attackers alter is found by its number: reading may leave some out.
        kinds = examples.values or [example.label for example in to_divide]
        numbered = read(to_divide, [str(i) for i in range(len(to_divide))])
        place = [int(tokens.kind) for tokens in numbered]
        parts.append([_of_kind(tokens, kinds[i]) for tokens, i in zip(numbered, place, strict=True)])
    else:
        parts.append(read(to_divide, examples.values))
    train = [tokens for part in parts for tokens in part]
    how.warn_of_long(long, examples.train, "training")
    long = 0
    validation = read(examples.splits.validation)
    how.warn_of_long(long, [examples.splits.validation], "validation")
    if examples.by_client is None:
        server, clients = client_data.divide(config, [tokens.kind for tokens in train])
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
        data = _attacked(config, task, examples, data, attackers, place, read)
    virtual = 0 if config.peft == "lora" else config.virtual_tokens
    texts = [side.ids for tokens in (*data.train, *data.validation, *data.triggered) for side in tokens.sides]
    check_fit(model, tokenizer, texts, max_length=config.max_length, virtual=virtual)
    if data.questions:
        data = replace(data, questions=within_room(data.questions, model, virtual))
    return data


def _attacked(
    config: FedConfig,
    task: Task,
    examples: FedExamples,
    data: Encoded,
    attackers: Attackers,
    place: Sequence[int],
    read: Callable[..., list[Tokens]],
) -> Encoded:
    """The data with what attackers made of theirs; who has what is divided as without them.

    Args:
        config: What the user wants.
        task: The data set.
        examples: The examples that this process has.
        data: Those as they are.
        attackers: Who alters what it trains on, and how.
        place: For each sequence that is divided which of the examples it is of.
        read: Makes token ids of examples.
    """
    if attackers.attack.poison is attackers.attack.probe is None:
        return data
    to_divide = examples.splits.train
    classes = task.label_names
    if data.reader.form is not None:
        classes = class_names(classes, [one for part in examples.train for one in part])
    train, clients = list(data.train), list(data.clients)
    for client in sorted(attackers.clients):
        if examples.by_client is not None:
            honest = examples.by_client[client]
        else:
            honest = [to_divide[place[i]] for i in clients[client]]
        if (poisoned := attackers.poisoned(client, honest, classes)) is not honest:
            tokens = read(poisoned)
            clients[client] = np.arange(len(train), len(train) + len(tokens))
            train += tokens
    triggered: list[Tokens] = []
    if attackers.attack.probe is not None:
        looked_at = examples.splits.validation[: config.val_limit]
        triggered = read(attackers.attack.probe(looked_at, classes))
    return replace(data, train=train, clients=clients, triggered=triggered)


def _of_kind(tokens: Tokens, kind: str) -> Tokens:
    rejected = tokens.rejected and tokens.rejected._replace(kind=kind)
    return tokens._replace(kind=kind, rejected=rejected)


def _in_turn(config: FedConfig, sizes: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Who has which training examples where they stand client after client, and then the server's."""
    ends = np.cumsum(sizes)
    *clients, server = (np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    return server, [np.concatenate(clients)] if config.train_mode == "local" else clients
