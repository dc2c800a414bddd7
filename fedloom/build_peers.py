"""From a config of `fedloom dfl` to the parts of a run; nothing behind this sees the config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from fedloom.build import ADAMW_WEIGHT_DECAY, base_noted, quieten
from fedloom.checks_peers import check
from fedloom.client.local import LocalRules
from fedloom.client.optimisers import Optimiser, adam, sgd
from fedloom.client.work import Schedule
from fedloom.config import UserError
from fedloom.config_libp2p import PeerConfig
from fedloom.config_peers import DflConfig
from fedloom.data.encode import Tokens, encode
from fedloom.data.encode_classes import encode_classes
from fedloom.data.randomness import derive_seed
from fedloom.data.tasks import TASKS, Task
from fedloom.data.templates import prompt_renderer
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.topology import build_topology, mixing
from fedloom.loop import Pace
from fedloom.model.adapters import choice
from fedloom.model.base import (
    BaseModel,
    check_model_name,
    check_quantize,
    is_encoder,
    load_base,
    resolve_device,
)
from fedloom.model.layout import shared_prefix
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.stacked import StackedModel
from fedloom.observe.answering import Questions, questions_of
from fedloom.peer_data import Held, Setting, hold
from fedloom.peer_rounds import Mixing, PeerParts
from fedloom.runs.inputs import Inputs, digest_of_arrays, digest_of_examples, digest_of_tokens
from fedloom.runtimes.group import ALONE, Group

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", DflConfig, PeerConfig)


def build(
    config: DflConfig, group: Group = ALONE, inputs: Inputs | None = None
) -> tuple[DflConfig, PeerParts]:
    """Make the parts of a run, cheap and fallible things first.

    Args:
        config: What the user wants.
        group: The run's processes.
        inputs: Is told the digests of what is read.

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
    drawn = partial(mixing, graph, seed=config.seed, drop_peer=config.drop_peer, drop_link=config.drop_link)
    return _build(config, drawn, group, inputs)


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
    return _build(config, lambda round_: alone, ALONE, inputs or Inputs(), only=config.client - 1)


def pace(config: Setting) -> Pace:
    """How many rounds, and what happens how often."""
    return Pace(
        rounds=config.num_rounds,
        validate_every=config.eval_every,
        answer_every=config.eval_generate_every,
        save_every=config.save_every,
        report_to=config.report_to,
    )


def _build(
    config: S, mixing: Mixing, group: Group, inputs: Inputs, only: int | None = None
) -> tuple[S, PeerParts]:
    quieten()
    assert config.model_checkpoint is not None
    check_quantize(config.quantize, resolve_device(config.device))
    task = TASKS[config.dataset_type]
    held = hold(config, task, only)
    inputs.note("training data", digest_of_examples(held.train))
    inputs.note("validation data", digest_of_examples(held.validation))
    check_model_name(config.model_checkpoint, config.token)
    classify = task.num_labels > 0 and (
        task.embedded is None
        or is_encoder(config.model_checkpoint, token=config.token, trust_remote_code=config.trust_remote_code)
    )
    if classify and config.eval_generate_every:
        raise UserError(
            f"eval_generate_every: {config.eval_generate_every}, but this model classifies and writes no "
            "answers; leave it out, or choose a causal language model and a task that is answered in words"
        )
    encoded: list[tuple[list[list[Tokens]], list[list[Tokens]], list[Questions]]] = []

    def encode_first(tokenizer: PreTrainedTokenizerBase) -> None:
        made: tuple[list[list[Tokens]], list[list[Tokens]]] = _encode(config, task, held, tokenizer, classify)
        inputs.note("tokens of the data", digest_of_tokens([*made[0], *made[1]]))
        inputs.check()
        encoded.append((*made, _questions(config, task, tokenizer, made[1])))

    with base_noted(inputs, config.model_checkpoint):
        base = load_base(
            config.model_checkpoint,
            device=config.device,
            dtype=config.dtype,
            quantize=config.quantize,
            token=config.token,
            trust_remote_code=config.trust_remote_code,
            num_labels=task.num_labels if classify else None,
            with_tokenizer=encode_first,
        )
    model = _stack(config, base, [*encoded[0][0], *encoded[0][1]])
    # Only now, as what all sequences share is found in those of all peers: dropout depends on it.
    train, validation = _own(encoded[0][0], only), _own(encoded[0][1], only)
    questions = _own(encoded[0][2], only)
    wave_tokens = config.wave_tokens
    if wave_tokens == "auto":
        wave_tokens = auto_wave_tokens(base.model, group.sharing)
    dtype = cast(Any, str(base.model.dtype).removeprefix("torch."))
    optimiser = _optimiser(config)
    ends = np.cumsum([len(own) for own in train])
    return replace(config, dtype=dtype, wave_tokens=wave_tokens), PeerParts(
        model=model,
        tokenizer=base.tokenizer,
        train=[tokens for own in train for tokens in own],
        peers=[np.arange(end - len(own), end) for own, end in zip(train, ends, strict=True)],
        validation=_for_each(validation, len(train)),
        questions=_for_each(questions, len(train)),
        schedules=[_schedule(config, len(own)) for own in train],
        rules=LocalRules(
            optimiser, clip_norm=config.clip_norm, wave_tokens=wave_tokens, dropout_seed=config.seed
        ),
        optimiser=optimiser,
        used={n: t for n, t in model.initial.items() if config.frozen_a and ".lora_A." in n},
        own=frozenset() if config.mix_head else frozenset(n for n in model.initial if ".lora_" not in n),
        modules=[projection.name for layer in model.adapted.values() for projection in layer],
        mixing=mixing,
        judged=config.eval_point,
        seed=config.seed,
        group=group,
        first=only or 0,
    )


def _own(part: list[T], only: int | None) -> list[T]:
    """One peer's, of what is there for each, or for all."""
    return part if only is None or len(part) < 2 else [part[only]]


def _encode(
    config: Setting, task: Task, held: Held, tokenizer: PreTrainedTokenizerBase, classify: bool
) -> tuple[list[list[Tokens]], list[list[Tokens]]]:
    """Token ids of every peer's examples, and of those it is judged by."""
    if classify:
        read = partial(
            encode_classes, tokenizer=tokenizer, label_names=task.label_names, max_length=config.max_length
        )
    else:
        assert config.model_checkpoint is not None
        render = prompt_renderer(config.model_checkpoint, tokenizer, task.instruction)
        read = partial(encode, tokenizer=tokenizer, render=render, max_length=config.max_length)
    done = []
    for what, parts in (("training", held.train), ("validation", held.validation)):
        sequences, counts = zip(*(read(part) for part in parts), strict=True)
        if sum(counts):
            fate = "cut to max_length" if classify else "longer than max_length and left out"
            log.warning("%d %s examples are %s %d", sum(counts), what, fate, config.max_length)
        done.append(list(sequences))
    return done[0], done[1]


def _stack(config: Setting, base: BaseModel, sequences: Sequence[Sequence[Tokens]]) -> StackedModel:
    adapter = choice.lora(
        base.model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.target_module_names,
    )
    adapter.base_model_name_or_path = base.name
    model = StackedModel(base.model, adapter, seed=derive_seed(config.seed, "adapter"))
    if base.model.can_generate():
        model.share_prefix(shared_prefix([tokens for part in sequences for tokens in part]))
    return model


def _for_each(own: Sequence[T], peers: int) -> Sequence[T]:
    """One for each peer, where one is for all."""
    return own if len(own) > 1 else [*own] * peers


def _questions(
    config: Setting, task: Task, tokenizer: PreTrainedTokenizerBase, validation: list[list[Tokens]]
) -> list[Questions]:
    """What each peer answers itself, or what all do; none where nobody is asked."""
    if not config.eval_generate_every:
        return []
    return [
        questions_of(own, tokenizer, config.eval_generate_limit, texts=task.brought) for own in validation
    ]


def _optimiser(config: Setting) -> Optimiser:
    if config.client_optimizer == "sgd":
        return sgd(config.lr)
    return adam(config.lr, weight_decay=ADAMW_WEIGHT_DECAY if config.client_optimizer == "adamw" else 0.0)


def _schedule(config: Setting, examples: int) -> Schedule:
    per_epoch = -(-examples // config.batch_size)
    batches = config.local_steps if config.local_steps is not None else config.local_epochs * per_epoch
    return Schedule(batches, config.batch_size)
