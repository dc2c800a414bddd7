"""From a config of `fedloom dfl` to the parts of a run; nothing behind this sees the config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.work import Schedule
from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError
from fedloom.evaluation.answering import within_room
from fedloom.federation.attacks import Attackers
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.topology import build_topology, mixing
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.fit import check_fit
from fedloom.model.layout import shared_prefix
from fedloom.options.check_graph import check, without_effect
from fedloom.options.graph import MOST_EVALUATED, DflConfig
from fedloom.options.peer import PeerConfig
from fedloom.runs.inputs import Inputs, digest_of_arrays, digest_of_examples, digest_of_tokens
from fedloom.runtimes.group import ALONE, Group
from fedloom.training.algorithms import (
    algorithm_on_graph,
    check_personal,
    client_optimiser,
    personal_names,
    simulated_attackers,
)
from fedloom.training.division import check_comparable
from fedloom.training.graph_data import (
    Encoded,
    PeerExamples,
    Setting,
    attacked,
    encode,
    open_data,
    read_peers,
)
from fedloom.training.graph_parts import Mixing, PeerParts
from fedloom.training.graph_votes import layer_votes
from fedloom.training.loop import Intervals
from fedloom.training.private import Budget, example_budget, example_privacy
from fedloom.training.setup import (
    beside_adapters,
    check_base,
    classes_of_head,
    load,
    lora,
    reader,
    resolved,
    stack,
)
from fedloom.training.shared import Shared

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", DflConfig, PeerConfig)


def build(
    config: DflConfig,
    group: Group = ALONE,
    inputs: Inputs | None = None,
    shared: Shared | None = None,
) -> tuple[DflConfig, PeerParts]:
    """Make the parts of a run, cheap and fallible things first.

    Args:
        config: What the user wants.
        group: The run's processes.
        inputs: Is told the digests of what is read.
        shared: What runs before this one have read and loaded.

    Returns:
        The config with what `auto` turned out to be (dtype, wave_tokens), and the parts.

    Raises:
        UserError: A mistake of the user, before any weights are read.
    """
    check(config)
    if config.num_clients < group.size:
        raise UserError(
            f"num_clients: {config.num_clients} peers cannot be dealt over {group.size} ranks, "
            "at least one each; raise num_clients or start fewer ranks"
        )
    inputs = inputs or Inputs()
    graph = build_topology(config.name, config.num_clients, config.seed)
    if graph.static is not None:
        links = f"{len(graph.static.edges)} links"
        inputs.note("links of the graph", digest_of_arrays(links, [graph.static.edges, graph.static.weights]))
    drawn = partial(
        mixing,
        graph,
        seed=config.seed,
        drop_peer=config.drop_peer,
        drop_link=config.drop_link,
        step=config.mixing_step,
    )
    attackers = simulated_attackers(config, config.num_clients)
    return _build(config, drawn, group, inputs, shared or Shared(), attackers=attackers)


def build_one(config: PeerConfig, inputs: Inputs | None = None) -> tuple[PeerConfig, PeerParts]:
    """Make the parts of a real peer, which knows no other: as `build` makes those of all.

    Within the process its matrix is that of a peer alone; its neighbours are the runtime's business.

    Args:
        config: What the user wants, checked.
        inputs: Is told the digests of what is read.

    Raises:
        UserError: A mistake of the user, before any weights are read.
    """
    alone = RoundMixing(np.empty((0, 2), dtype=np.int64), np.empty(0), np.ones(1, dtype=bool))
    return _build(config, lambda round_: alone, ALONE, inputs or Inputs(), Shared(), only=config.client - 1)


def intervals(config: Setting) -> Intervals:
    """How many rounds, and what happens how often."""
    return Intervals(
        rounds=config.num_rounds,
        validate_every=config.eval_every,
        answer_every=config.eval_generate_every,
        save_every=config.save_every,
        report_to=config.report_to,
    )


def _build(
    config: S,
    mixing: Mixing,
    group: Group,
    inputs: Inputs,
    shared: Shared,
    only: int | None = None,
    attackers: Attackers | None = None,
) -> tuple[S, PeerParts]:
    assert config.model_checkpoint is not None
    for said in without_effect(config) if group.rank == 0 else ():
        log.warning(said)
    algorithm = algorithm_on_graph(config)
    check_base(config, config.model_checkpoint)
    task = open_data(config, shared, only)
    examples: PeerExamples = read_peers(config, task, shared, only)
    check_comparable([*examples.train, *examples.validation])
    inputs.note("training data", shared.once(digest_of_examples, examples.train))
    inputs.note("validation data", shared.once(digest_of_examples, examples.validation))
    classes = classes_of_head(config, config.model_checkpoint, task, own_by_head=True)
    examples, triggered = attacked(config, examples, attackers, task.label_names, bool(classes))
    ready: list[tuple[Encoded, PeftConfig, Budget | None]] = []

    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        how = reader(config, task, tokenizer, classes, shared)
        read: Encoded = encode(config, examples, triggered, how, shared)
        inputs.note("tokens of the data", shared.once(digest_of_tokens, [*read.train, *read.validation]))
        inputs.check()
        texts = [
            side.ids for part in (*read.train, *read.validation) for tokens in part for side in tokens.sides
        ]
        check_fit(structure, tokenizer, texts, max_length=config.max_length)
        adapter = lora(config, config.lora_r, structure)
        read = replace(read, questions=[within_room(q, structure) for q in read.questions])
        ready.append((read, adapter, _budget(config, read, only)))
        personal = personal_names(config, algorithm, check_adapter(structure, adapter))
        check_personal(
            algorithm, personal, min(_schedule(config, len(of_peer)).batches for of_peer in read.train)
        )

    base = load(config, config.model_checkpoint, classes, inputs, before_weights, shared)
    shared.forget_the_rest()
    if base.drawn:
        log.warning(
            "not in the model's files, so drawn at random, trained, and saved with the adapter: %s",
            ", ".join(base.drawn),
        )
    data: Encoded
    ((data, adapter, budget),) = ready
    every = chain.from_iterable([*data.train, *data.validation])
    prefix = shared_prefix(list(every)) if base.model.can_generate() else 0
    model = stack(config, base, adapter, prefix)
    if algorithm.refactoring is not None and algorithm.refactoring.initial is not None:
        model.initial = algorithm.refactoring.initial(model.initial, config.seed)
    # Only now, as what all sequences share is found in those of all peers: dropout depends on it.
    train = _own(data.train, only)
    validation = [of_peer[: config.val_limit] for of_peer in _own(data.validation, only)]
    questions = _own(data.questions, only)
    optimiser = client_optimiser(config.client_optimizer, config.lr, config.loraplus_lr_ratio)
    frozen = {n: t for n, t in model.initial.items() if config.frozen_a and ".lora_A." in n}
    if algorithm.refactoring is not None:  # its factors stay as they were drawn, the same for all
        moving = algorithm.trains(model.initial.keys(), 0)
        frozen |= {n: t for n, t in model.initial.items() if n not in moving}
    personal = personal_names(config, algorithm, model.initial.keys())
    mixed = {n: t for n, t in model.initial.items() if n not in frozen and n not in personal}
    model.initial |= algorithm.first_base(mixed)  # each peer's own residual, where it has one
    ends = np.cumsum([len(of_peer) for of_peer in train])
    config = resolved(config, base, data.reader, group, shared.jobs)
    assert isinstance(config.wave_tokens, int)
    schedules = [_schedule(config, len(of_peer)) for of_peer in train]
    return config, PeerParts(
        model=model,
        tokenizer=base.tokenizer,
        train=[tokens for of_peer in train for tokens in of_peer],
        peers=[np.arange(end - len(of_peer), end) for of_peer, end in zip(train, ends, strict=True)],
        validation=_for_each(validation, len(train)),
        questions=_for_each(questions, len(train)),
        schedules=schedules,
        algorithm=algorithm,
        rules=LocalRules(
            optimiser,
            rule=algorithm.rule,
            clip_norm=config.clip_norm,
            wave_tokens=config.wave_tokens,
            dropout_seed=config.seed,
            privacy=example_privacy(config),
        ),
        optimiser=optimiser,
        frozen=frozen,
        personal=personal,
        modules=[projection.name for layer in model.adapted.values() for projection in layer],
        mixing=mixing,
        votes=layer_votes(config, model, frozen),
        evaluates=config.eval_point,
        seed=config.seed,
        group=group,
        first=only or 0,
        everybody=config.num_clients,
        budget=budget,
        reading=data.reading,
        beside=beside_adapters(config, task, base, data.reader),
        attackers=attackers,
        triggered=data.triggered,
        sample=_sample(config, attackers) if isinstance(config, DflConfig) else None,
    )


def _sample(config: DflConfig, attackers: Attackers | None) -> list[int] | None:
    """The peers that are evaluated, ascending; None: all."""
    most = MOST_EVALUATED if config.eval_peers == "auto" else config.eval_peers
    if most >= config.num_clients:
        return None
    attack = attackers.clients if attackers else frozenset()
    honest = [peer for peer in range(config.num_clients) if peer not in attack]
    order = numpy_rng(config.seed, "evaluated peers").permutation(len(honest))
    return sorted(honest[place] for place in order[:most].tolist())


def _budget(config: Setting, data: Encoded, only: int | None) -> Budget | None:
    """What the peers may spend; None where nothing is private."""
    if config.privacy == "none":
        return None
    sizes = [len(of_peer) for of_peer in _own(data.train, only)]
    schedules = [_schedule(config, size) for size in sizes]
    return example_budget(config, sizes, schedules, peers=only is None)


def _own(part: list[T], only: int | None) -> list[T]:
    """One peer's, of what is there for each, or for all."""
    return part if only is None or len(part) < 2 else [part[only]]


def _for_each(lists: Sequence[T], peers: int) -> Sequence[T]:
    """One for each peer, where one is for all."""
    return lists if len(lists) > 1 else [*lists] * peers


def _schedule(config: Setting, examples: int) -> Schedule:
    per_epoch = -(-examples // config.batch_size)
    batches = config.local_steps if config.local_steps is not None else config.local_epochs * per_epoch
    return Schedule(batches, config.batch_size)
