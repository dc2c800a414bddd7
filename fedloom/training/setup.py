"""What runs with a server and without one set up alike: how examples are read, the base and its adapters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.encode import Tokens, encode, reading
from fedloom.data.encode_classes import class_reading, encode_classes
from fedloom.data.example import Example
from fedloom.data.randomness import derive_seed
from fedloom.data.tasks import TASKS, Task
from fedloom.data.templates import PromptFormat, instruction_of, prompt_format
from fedloom.errors import UserError
from fedloom.model.adapters import choice
from fedloom.model.base import BaseModel, BeforeWeights, configuration, encodes
from fedloom.model.class_order import class_order, name_classes
from fedloom.model.files import check_model_name
from fedloom.model.hardware import check_quantize, resolve_device
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.quiet import quieten
from fedloom.model.stacked import StackedModel
from fedloom.options.declare import names_or_pattern
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.peer import PeerConfig
from fedloom.runs.inputs import Inputs
from fedloom.runtimes.group import Group
from fedloom.training.adapter_folder import AdapterFolder, of_classes, of_prompts
from fedloom.training.provenance import base_noted
from fedloom.training.shared import Shared

log = logging.getLogger(__name__)

C = TypeVar("C", FedConfig, DflConfig, PeerConfig)
Setting = FedConfig | DflConfig | PeerConfig


@dataclass(frozen=True)
class Reader:
    """How examples become token ids.

    Attributes:
        tokenizer: The model's.
        max_length: The most tokens of a sequence; longer ones are left out, or cut where they are classified.
        classes: In the order of the outputs of the model's head; none where it writes answers.
        form: How a question is put to a model that writes.
        instruction: What it is told in front of each; "" for nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    classes: Sequence[str] = ()
    form: PromptFormat | None = None
    instruction: str = ""

    def read(self, examples: Sequence[Example]) -> tuple[list[Tokens], int]:
        """Their sequences, and how many of the examples are too long."""
        if self.form is None:
            return encode_classes(examples, self.tokenizer, self.classes, self.max_length)
        return encode(examples, self.tokenizer, self.form, self.max_length)

    def name(self, sequences: Sequence[Tokens]) -> str:
        """A short name of how examples are read, the same for all who train together."""
        if self.form is None:
            return class_reading(self.tokenizer, self.classes)
        return reading(self.tokenizer, self.form, sequences)

    def warn_of_long(self, long: int, parts: Sequence[Sequence[Example]], what: str) -> None:
        """Say how many examples are too long, where some are."""
        if long:
            log.warning(
                "%d of %d %s examples are longer than max_length %d and %s",
                long,
                sum(map(len, parts)),
                what,
                self.max_length,
                "cut" if self.form is None else "left out",
            )


def reader(
    config: Setting,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    shared: Shared,
) -> Reader:
    """How a data set's examples become token ids: to be classified, or as questions and answers."""
    if classes:
        return Reader(tokenizer, config.max_length, classes)
    instruction = instruction_of(task.instruction, config.system_prompt)
    form = shared.once(prompt_format, tokenizer, instruction, config.prompt_format, config.prompt_date)
    return Reader(tokenizer, config.max_length, (), form, instruction)


def check_base(config: Setting, name: str) -> None:
    """Make sure of the device and the model before anything is read.

    Raises:
        UserError: The device cannot quantise, or there is no such model.
    """
    quieten()
    check_quantize(config.quantize, resolve_device(config.device))
    check_model_name(name, config.token)


def classes_of_head(config: Setting, name: str, task: Task, *, own_by_head: bool) -> tuple[str, ...]:
    """The classes that a model's head is trained to tell apart, in the order of its outputs.

    A model that reads and cannot write classifies whatever has classes; one that writes does so for the tasks
    of sentence classification, and writes its answers to everything else.

    Args:
        config: Options of the run.
        name: The model, of which the configuration alone is read.
        task: What is learned.
        own_by_head: Whether a model that can write classifies a user's own labelled texts too; else it learns
            to write their labels.

    Returns:
        The classes; none where answers are written.

    Raises:
        UserError: The configuration cannot be had, or names other classes; or the model is to write answers.
    """
    if not task.num_labels:
        return ()
    known = task.name in TASKS and task.embedded is None and not task.own
    structure = configuration(name, token=config.token, trust_remote_code=config.trust_remote_code)
    if not (known or encodes(structure) or (own_by_head and task.own)):
        return ()
    classes = class_order(structure, task.label_names, name)
    if config.eval_generate_every:
        raise UserError(
            f"eval_generate_every: {config.eval_generate_every}, but this model classifies and writes no "
            "answers; leave it out, or choose a causal language model and a task that is answered in words"
        )
    return classes


def load(
    config: Setting,
    name: str,
    classes: Sequence[str],
    inputs: Inputs,
    before_weights: BeforeWeights,
    shared: Shared,
) -> BaseModel:
    """The base model of a run, whose files' digests are taken down, with the classes of its head named."""
    names = ("device", "dtype", "quantize", "token", "trust_remote_code")
    options = {name: getattr(config, name) for name in names} | {"num_labels": len(classes) or None}
    with base_noted(inputs, name) as files:
        base = shared.base(name, files, options, before_weights)
    if classes:
        name_classes(base.model, classes)
    return base


def lora(config: Setting, rank: int, model: PreTrainedModel) -> PeftConfig:
    """LoRA as the options have it."""
    return choice.lora(
        model,
        r=rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=names_or_pattern(config.target_modules),
        rslora=config.use_rslora,
    )


def stack(config: Setting, base: BaseModel, adapter: PeftConfig, prefix: int) -> StackedModel:
    """The base with stacked adapters.

    Args:
        config: Options of the run.
        base: The model.
        adapter: What trains, beside what was drawn of the base.
        prefix: How many tokens all sequences are known to begin with.
    """
    adapter = choice.with_drawn(adapter, base.drawn)
    adapter.base_model_name_or_path = base.name
    # PEFT draws from torch's generator, which takes 64 bits; ours have a purpose.
    model = StackedModel(base.model, adapter, seed=derive_seed(config.seed, "adapter"))
    model.share_prefix(prefix)
    model.beta = config.dpo_beta
    return model


def resolved(config: C, base: BaseModel, reader: Reader, group: Group, jobs: int) -> C:
    """The options with what `auto` turned out to be: dtype, wave_tokens, system_prompt.

    Args:
        config: Options of the run.
        base: The model.
        reader: How examples are read.
        group: The processes of the run.
        jobs: Runs that are made on this machine at the same time.
    """
    wave_tokens = config.wave_tokens
    if wave_tokens == "auto":
        wave_tokens = auto_wave_tokens(base.model, group.sharing, jobs)
    return replace(
        config,
        dtype=cast(Any, str(base.model.dtype).removeprefix("torch.")),
        wave_tokens=wave_tokens,
        system_prompt=config.system_prompt if reader.form is None else reader.instruction or "none",
    )


def beside_adapters(config: Setting, task: Task, base: BaseModel, reader: Reader) -> AdapterFolder:
    """What is written beside every saved adapter."""
    if reader.form is None:
        return of_classes(task.name, base.name, base.tokenizer, reader.classes)
    return of_prompts(config, task.name, base.name, base.tokenizer, reader.form, reader.instruction)
