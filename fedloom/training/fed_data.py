"""From a config to the data of a run as token ids, and who has what of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from fedloom.data.encode import Tokens, encode, reading
from fedloom.data.example import Splits
from fedloom.data.partition import iid, with_server
from fedloom.data.sources import load_splits
from fedloom.data.tasks import Task
from fedloom.data.templates import PromptFormat, prompt_format
from fedloom.evaluation.answering import Questions, questions_of
from fedloom.model.layout import shared_prefix
from fedloom.options.fed import FedConfig

log = logging.getLogger(__name__)

Deal = Callable[[FedConfig, int], tuple[np.ndarray, list[np.ndarray]]]
"""``(config, number of training examples) -> (the server's, each client's)``, as indices."""


@dataclass(frozen=True)
class Encoded:
    """A data set as token ids.

    Attributes:
        train, validation: Sequences to train on and to validate on.
        clients: For each client the indices of its training sequences.
        server: The indices of the training sequences that the server keeps; no client has them.
        form: How a question is put to the model.
        reading: A short name of how problems become token ids, the same for all who train together.
        questions: The validation problems that the model answers itself; None where it is never asked.
    """

    train: list[Tokens]
    validation: list[Tokens]
    clients: list[np.ndarray]
    server: np.ndarray
    form: PromptFormat
    reading: str
    questions: Questions | None

    @property
    def prefix(self) -> int:
        """How many tokens all sequences begin with."""
        return shared_prefix([*self.train, *self.validation])


@dataclass(frozen=True)
class ClientData:
    """Whose data a process has.

    Attributes:
        load: The examples that it has.
        deal: Who has which of them.
    """

    load: Callable[[FedConfig, Task], Splits]
    deal: Deal


def encode_data(
    config: FedConfig, task: Task, splits: Splits, deal: Deal, tokenizer: PreTrainedTokenizerBase
) -> Encoded:
    """Make token ids of examples; what is too long is left out.

    Raises:
        UserError: Nothing is left, or the clients are more than the examples.
    """
    form = prompt_format(tokenizer, task.instruction, config.prompt_format, config.prompt_date)
    sequences: list[list[Tokens]] = []
    for name, examples in (("training", splits.train), ("validation", splits.validation)):
        kept, dropped = encode(examples, tokenizer, form, config.max_length) if examples else ([], 0)
        if dropped:
            log.warning(
                "%d of %d %s examples are longer than max_length %d and left out",
                dropped,
                len(examples),
                name,
                config.max_length,
            )
        sequences.append(kept)
    train, validation = sequences
    server, clients = deal(config, len(train))
    questions = None
    if config.eval_generate_every:
        questions = questions_of(validation, config.eval_generate_limit, form.end)
    return Encoded(train, validation, clients, server, form, reading(tokenizer, form), questions)


def _load(config: FedConfig, task: Task) -> Splits:
    return load_splits(task, data_dir=config.data_dir, seed=config.seed, token=config.token)


def _deal(config: FedConfig, examples: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Who has which training examples: the server's, and each client's."""
    if config.train_mode == "fedGradFocus":
        own = max(config.batch_size, round(config.server_data_fraction * examples))
        return with_server(examples, config.client_num, own, config.seed)
    clients = 1 if config.train_mode == "local" else config.client_num
    return np.empty(0, dtype=np.int64), iid(examples, clients, config.seed)


ALL_CLIENTS = ClientData(_load, _deal)
"""One data set, dealt over the server and all clients."""

SERVER_ALONE = ClientData(
    _load,
    lambda config, examples: (np.arange(examples), [np.empty(0, dtype=np.int64)] * config.client_num),
)
"""A server's own data set, where clients keep theirs."""
