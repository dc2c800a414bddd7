"""From a config of `fedloom dfl` to the parts of a run; nothing behind this sees the config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.work import Schedule
from fedloom.data.encode import Tokens, encode, reading
from fedloom.data.encode_classes import class_reading, encode_classes
from fedloom.data.example import Example
from fedloom.data.randomness import derive_seed
from fedloom.data.tasks import Task
from fedloom.data.templates import PromptFormat, instruction_of, prompt_format
from fedloom.errors import UserError
from fedloom.evaluation.answering import Questions, questions_of, within_room
from fedloom.federation.attacks import Attackers, told_apart
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.topology import build_topology, mixing
from fedloom.model.adapters import choice
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.base import BaseModel, load_base
from fedloom.model.class_order import name_classes
from fedloom.model.files import check_model_name
from fedloom.model.fit import check_fit
from fedloom.model.hardware import check_quantize, resolve_device
from fedloom.model.layout import shared_prefix
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.quiet import quieten
from fedloom.model.stacked import StackedModel
from fedloom.options.check_graph import check
from fedloom.options.graph import DflConfig
from fedloom.options.peer import PeerConfig
from fedloom.runs.inputs import Inputs, digest_of_arrays, digest_of_examples, digest_of_tokens
from fedloom.runtimes.group import ALONE, Group
from fedloom.training.adapter_folder import of_classes, of_prompts
from fedloom.training.algorithms import (
    algorithm_on_graph,
    check_personal,
    client_optimiser,
    layer_votes,
    personal_names,
    simulated_attackers,
)
from fedloom.training.classes import check_written, classes_of_head
from fedloom.training.division import check_comparable, check_sizes, of_client
from fedloom.training.graph_data import PeerExamples, Setting, hold, open_data
from fedloom.training.graph_parts import Mixing, PeerParts
from fedloom.training.loop import Intervals
from fedloom.training.private import example_budget, example_privacy
from fedloom.training.provenance import base_noted

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", DflConfig, PeerConfig)


@dataclass(frozen=True)
class _Encoded:
    """Token ids of every peer's examples, or of one list for all; see `PeerParts`."""

    train: list[list[Tokens]]
    validation: list[list[Tokens]]
    questions: list[Questions]
    reading: str
    form: PromptFormat | None
    triggered: list[Tokens]


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
    drawn = partial(
        mixing,
        graph,
        seed=config.seed,
        drop_peer=config.drop_peer,
        drop_link=config.drop_link,
        step=config.mixing_step,
    )
    return _build(config, drawn, group, inputs, attackers=simulated_attackers(config, config.num_clients))


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
    only: int | None = None,
    attackers: Attackers | None = None,
) -> tuple[S, PeerParts]:
    quieten()
    assert config.model_checkpoint is not None
    algorithm = algorithm_on_graph(config)
    check_quantize(config.quantize, resolve_device(config.device))
    check_model_name(config.model_checkpoint, config.token)
    task = open_data(config, only)
    held: PeerExamples = hold(config, task, only)
    check_comparable([*held.train, *held.validation])
    inputs.note("training data", digest_of_examples(held.train))
    inputs.note("validation data", digest_of_examples(held.validation))
    classes = classes_of_head(
        task,
        config.model_checkpoint,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        own_by_head=True,
    )
    check_written(classes, config.eval_generate_every)
    held, triggered = _attacked(config, held, attackers, task.label_names, bool(classes))
    encoded: list[_Encoded] = []
    adapters: list[PeftConfig] = []

    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        read: _Encoded = _encode(config, task, held, triggered, tokenizer, classes)
        inputs.note("tokens of the data", digest_of_tokens([*read.train, *read.validation]))
        inputs.check()
        texts = [
            side.ids for part in (*read.train, *read.validation) for tokens in part for side in tokens.sides
        ]
        check_fit(structure, tokenizer, texts, max_length=config.max_length)
        encoded.append(replace(read, questions=[within_room(own, structure) for own in read.questions]))
        adapters.append(_adapter(config, structure))
        personal = personal_names(config, algorithm, check_adapter(structure, adapters[0]))
        check_personal(algorithm, personal, min(_schedule(config, len(own)).batches for own in read.train))

    with base_noted(inputs, config.model_checkpoint):
        base = load_base(
            config.model_checkpoint,
            device=config.device,
            dtype=config.dtype,
            quantize=config.quantize,
            token=config.token,
            trust_remote_code=config.trust_remote_code,
            num_labels=len(classes) or None,
            before_weights=before_weights,
        )
    if classes:
        name_classes(base.model, classes)
    data: _Encoded = encoded[0]
    model = _stack(config, base, adapters[0], [*data.train, *data.validation])
    # Only now, as what all sequences share is found in those of all peers: dropout depends on it.
    train = _own(data.train, only)
    validation = [own[: config.val_limit] for own in _own(data.validation, only)]
    questions = _own(data.questions, only)
    wave_tokens = config.wave_tokens
    if wave_tokens == "auto":
        wave_tokens = auto_wave_tokens(base.model, group.sharing)
    dtype = cast(Any, str(base.model.dtype).removeprefix("torch."))
    optimiser = client_optimiser(config.client_optimizer, config.lr, config.loraplus_lr_ratio)
    frozen = {n: t for n, t in model.initial.items() if config.frozen_a and ".lora_A." in n}
    ends = np.cumsum([len(own) for own in train])
    instruction = instruction_of(task.instruction, config.system_prompt)
    if data.form is None:
        beside = of_classes(task.name, base.name, base.tokenizer, classes)
    else:
        beside = of_prompts(config, task.name, base.name, base.tokenizer, data.form, instruction)
    resolved = replace(
        config,
        dtype=dtype,
        wave_tokens=wave_tokens,
        system_prompt=config.system_prompt if data.form is None else instruction or "none",
    )
    schedules = [_schedule(config, len(own)) for own in train]
    budget = None
    if getattr(config, "privacy", "none") != "none":
        budget = example_budget(config, [len(own) for own in train], schedules, peers=True)
    return resolved, PeerParts(
        model=model,
        tokenizer=base.tokenizer,
        train=[tokens for own in train for tokens in own],
        peers=[np.arange(end - len(own), end) for own, end in zip(train, ends, strict=True)],
        validation=_for_each(validation, len(train)),
        questions=_for_each(questions, len(train)),
        schedules=schedules,
        algorithm=algorithm,
        rules=LocalRules(
            optimiser,
            rule=algorithm.rule,
            clip_norm=config.clip_norm,
            wave_tokens=wave_tokens,
            dropout_seed=config.seed,
            privacy=example_privacy(config),
        ),
        optimiser=optimiser,
        frozen=frozen,
        own=personal_names(config, algorithm, model.initial.keys()),
        modules=[projection.name for layer in model.adapted.values() for projection in layer],
        mixing=mixing,
        votes=layer_votes(config, model, frozen) if isinstance(config, DflConfig) else None,
        judged=config.eval_point,
        seed=config.seed,
        group=group,
        first=only or 0,
        budget=budget,
        reading=data.reading,
        beside=beside,
        attackers=attackers,
        triggered=data.triggered,
    )


def _attacked(
    config: Setting, held: PeerExamples, attackers: Attackers | None, names: Sequence[str], classify: bool
) -> tuple[PeerExamples, list[Example]]:
    """What peers hold once attackers have altered theirs, and validation examples that they want answered.

    Args:
        config: What the user wants.
        held: What they hold.
        attackers: Who alters what.
        names: The data set's classes.
        classify: Whether the model tells them apart itself; else their names must be the answers.
    """
    if attackers is None:
        return held, []
    examples = [example for own in held.train for example in own]
    classes = tuple(names) if classify else told_apart(names, examples)
    train = [attackers.poisoned(peer, own, classes) for peer, own in enumerate(held.train)]
    judged = [example for own in held.validation for example in own[: config.val_limit]]
    probe = attackers.attack.probe
    return PeerExamples(train, held.validation), probe(judged, classes) if probe else []


def _own(part: list[T], only: int | None) -> list[T]:
    """One peer's, of what is there for each, or for all."""
    return part if only is None or len(part) < 2 else [part[only]]


def _encode(
    config: Setting,
    task: Task,
    held: PeerExamples,
    triggered: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
) -> _Encoded:
    """Encode everything; to classify, with the classes in the order of the model's head."""
    read: Callable[[Sequence[Example]], tuple[list[Tokens], int]]
    if classes:
        length = config.max_length
        read = partial(encode_classes, tokenizer=tokenizer, label_names=classes, max_length=length)
    else:
        instruction = instruction_of(task.instruction, config.system_prompt)
        form = prompt_format(tokenizer, instruction, config.prompt_format, config.prompt_date)
        read = partial(encode, tokenizer=tokenizer, form=form, max_length=config.max_length)
    done = []
    for what, parts in (("training", held.train), ("validation", held.validation)):
        found = []
        for number, part in enumerate(parts, start=1):
            with of_client(number) if len(parts) > 1 else nullcontext():
                found.append(read(part))
        sequences, counts = zip(*found, strict=True)
        if sum(counts):
            fate = "cut to max_length" if classes else "longer than max_length and left out"
            log.warning("%d %s examples are %s %d", sum(counts), what, fate, config.max_length)
        done.append(list(sequences))
    train, validation = done
    wanted = read(triggered)[0] if triggered else []
    check_sizes(config, [len(own) for own in train])
    if classes:
        return _Encoded(train, validation, [], class_reading(tokenizer, classes), None, wanted)
    limit = config.eval_generate_limit
    questions = [
        questions_of(own, limit, form.end) for own in (validation if config.eval_generate_every else ())
    ]
    word = reading(tokenizer, form, chain.from_iterable(train))
    return _Encoded(train, validation, questions, word, form, wanted)


def _adapter(config: Setting, model: PreTrainedModel) -> PeftConfig:
    return choice.lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.target_module_names,
        rslora=config.use_rslora,
    )


def _stack(
    config: Setting, base: BaseModel, adapter: PeftConfig, sequences: Sequence[Sequence[Tokens]]
) -> StackedModel:
    if base.drawn:
        log.warning(
            "not in the model's files, so drawn at random, trained, and saved with the adapter: %s",
            ", ".join(base.drawn),
        )
    adapter = choice.with_drawn(adapter, base.drawn)
    adapter.base_model_name_or_path = base.name
    model = StackedModel(base.model, adapter, seed=derive_seed(config.seed, "adapter"))
    model.beta = config.dpo_beta
    if base.model.can_generate():
        model.share_prefix(shared_prefix([tokens for part in sequences for tokens in part]))
    return model


def _for_each(own: Sequence[T], peers: int) -> Sequence[T]:
    """One for each peer, where one is for all."""
    return own if len(own) > 1 else [*own] * peers


def _schedule(config: Setting, examples: int) -> Schedule:
    per_epoch = -(-examples // config.batch_size)
    batches = config.local_steps if config.local_steps is not None else config.local_epochs * per_epoch
    return Schedule(batches, config.batch_size)
