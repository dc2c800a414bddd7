"""The data of peers without a server: their own folders, or a split of the task's data; as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fedloom.data.clients import load_clients, load_validation, path_of, paths_of
from fedloom.data.encode import Tokens
from fedloom.data.example import Example
from fedloom.data.own import open_task
from fedloom.data.stamps import stamps
from fedloom.data.tasks import Task
from fedloom.evaluation.answering import Questions, questions_of
from fedloom.federation.attacks import Attackers, class_names
from fedloom.options.graph import DflConfig
from fedloom.options.own_data import column_names
from fedloom.options.peer import PeerConfig
from fedloom.training.division import check_sizes, divided, of_client, published_validation, splits_and_values
from fedloom.training.setup import Reader
from fedloom.training.shared import Shared

Setting = DflConfig | PeerConfig


@dataclass(frozen=True)
class PeerExamples:
    """Who holds what: training examples per peer, and one list of validation examples, or one per peer."""

    train: list[list[Example]]
    validation: list[list[Example]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of every peer's examples, or of one list for all; see `PeerParts`."""

    train: list[list[Tokens]]
    validation: list[list[Tokens]]
    questions: list[Questions]
    reader: Reader
    reading: str
    triggered: list[Tokens]


def open_data(config: Setting, shared: Shared, only: int | None = None) -> Task:
    """What the options say of the data, and where the peers hold their own, what those are.

    Args:
        config: What the user wants.
        shared: What was read before.
        only: As for `read_peers`.
    """
    template, peers = config.dataset_path_template, config.num_clients
    if only is not None and template is not None:
        template, peers = path_of(template, only + 1), 1
    templates = (template, config.val_dataset_path_template)
    shared.begin(stamps(config.dataset_type, config.data_dir, templates, config.num_clients))
    return shared.once(
        open_task,
        config.dataset_type,
        data_dir=config.data_dir,
        data_format=config.data_format,
        columns=column_names(config.columns),
        client_paths=paths_of(template, peers),
        limits=config.limits,
        token=config.token,
    )


def read_peers(config: Setting, task: Task, shared: Shared, only: int | None = None) -> PeerExamples:
    """Read the peers' own data, or split the task's training data among them.

    Args:
        config: What the user wants.
        task: The data set.
        shared: What was read before.
        only: The one peer, from 0, whose own data the templates are to give; None: all. What is split here is
            split for all in any case.

    Raises:
        UserError: Data that cannot be found, read or split.
    """
    template, validation_template = config.dataset_path_template, config.val_dataset_path_template
    peers = config.num_clients
    if only is not None:
        template, validation_template = (
            given and path_of(given, only + 1) for given in (template, validation_template)
        )
        peers = 1 if template else peers
    # The folders first: what is missing there is known at once, the hub takes its time.
    train = shared.once(load_clients, template, peers, task) if template is not None else None
    validation = (
        shared.once(load_validation, validation_template, peers, task)
        if validation_template is not None
        else None
    )
    data_set: dict[str, Any] = {"data_dir": config.data_dir, "seed": config.data_seed, "token": config.token}
    if train is not None:
        return PeerExamples(train, validation or [shared.once(published_validation, task, **data_set)])
    splits, values = shared.once(splits_and_values, task, config.field, **data_set)
    labels = [example.label for example in splits.train]
    shares = divided(
        config, labels, config.num_clients, seed=config.data_seed, values=values, option="num_clients"
    )
    return PeerExamples(
        [[splits.train[i] for i in share] for share in shares], validation or [splits.validation]
    )


def attacked(
    config: Setting, given: PeerExamples, attackers: Attackers | None, names: Sequence[str], classify: bool
) -> tuple[PeerExamples, list[Example]]:
    """What peers hold once attackers have altered theirs, and validation examples that they want answered.

    Args:
        config: What the user wants.
        given: What they hold.
        attackers: Who alters what.
        names: The data set's classes.
        classify: Whether the model tells them apart itself; else their names must be the answers.
    """
    if attackers is None:
        return given, []
    examples = [example for part in given.train for example in part]
    classes = tuple(names) if classify else class_names(names, examples)
    train = [attackers.poisoned(peer, part, classes) for peer, part in enumerate(given.train)]
    looked_at = [example for part in given.validation for example in part[: config.val_limit]]
    probe = attackers.attack.probe
    return PeerExamples(train, given.validation), probe(looked_at, classes) if probe else []


def encode(
    config: Setting, given: PeerExamples, triggered: list[Example], reader: Reader, shared: Shared
) -> Encoded:
    """Encode everything; what is too long is left out, or cut where it is classified.

    Raises:
        UserError: Nothing is left of somebody's.
    """
    done = []
    for what, parts in (("training", given.train), ("validation", given.validation)):
        sequences, long = [], 0
        for number, part in enumerate(parts, start=1):
            with of_client(number) if len(parts) > 1 else nullcontext():
                found, more = shared.once(Reader.read, reader, part)
            sequences.append(found)
            long += more
        reader.warn_of_long(long, parts, what)
        done.append(sequences)
    train, validation = done
    wanted = reader.read(triggered)[0] if triggered else []
    check_sizes(config, [len(of_peer) for of_peer in train])
    questions = []
    if reader.form is not None and config.eval_generate_every:
        end = reader.form.end
        questions = [questions_of(of_peer, config.eval_generate_limit, end) for of_peer in validation]
    word = reader.name([tokens for of_peer in train for tokens in of_peer])
    return Encoded(train, validation, questions, reader, word, wanted)
