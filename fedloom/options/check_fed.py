"""Judge the values of options, before anything heavy is loaded."""

import re
from dataclasses import fields
from datetime import date
from typing import Any, get_args

from fedloom.errors import UserError, shown
from fedloom.options.attack import check_attack
from fedloom.options.check_method import check_method
from fedloom.options.declare import names_or_pattern, options
from fedloom.options.fed import FedConfig, GradientPriority
from fedloom.options.idle import idle
from fedloom.options.lora_variants import check_lora_variants
from fedloom.options.methods import chosen
from fedloom.options.own_data import OwnData, check_own_data
from fedloom.options.partition import Partition, check_partition, idle_in_partition
from fedloom.options.parts import is_plugged
from fedloom.options.privacy import check_privacy
from fedloom.options.run import PROMPT_DATE, FormatName, Prompts, Run
from fedloom.options.secure import check_secure
from fedloom.options.synonyms import DEVICES, did_you_mean
from fedloom.options.trackers import check_trackers

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")
_NO_FOLDER_NAMES = ("", ".", "..")
MOST_EXAMPLES_PER_ROUND = 10**7
"""Examples that all clients of a round draw together; more would take days, and gigabytes for their plan."""


def check(config: FedConfig) -> None:
    """Judge the options of `fedloom fed`, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_values(config)
    check_lora_variants(config)
    federated = config.train_mode != "local"
    if federated and config.client_num_per_step > config.client_num:
        raise UserError(
            f"client_num_per_step: {config.client_num_per_step} clients cannot be sampled from "
            f"client_num {config.client_num}; lower client_num_per_step or raise client_num"
        )
    clients = config.client_num_per_step if federated else 1
    drawn = clients * config.client_batch_per_step * config.batch_size * config.client_epoch
    if drawn > MOST_EXAMPLES_PER_ROUND:
        raise UserError(
            f"client_batch_per_step: {clients} clients x {config.client_batch_per_step} batches x batch_size "
            f"{config.batch_size} x client_epoch {config.client_epoch} are {drawn:,} examples in a round; "
            f"{MOST_EXAMPLES_PER_ROUND:,} is the most, so lower one of them"
        )
    if not federated and config.client_optimizer != "sgd":
        raise UserError(
            f"client_optimizer: train_mode local trains by AdamW at lr, and {config.client_optimizer} would "
            "not be used; leave it out, or choose --train_mode fed"
        )
    check_target_modules(config.target_modules)
    _check_ranks(config)
    check_method(config, server=True)
    check_attack(config, config.client_num)
    check_privacy(config, server=True)
    check_secure(config)
    if config.train_mode == "fedGradFocus" and config.peft != "lora":
        raise UserError(
            f"peft: {config.peft} trains virtual tokens, so there are no layers for fedGradFocus to choose; "
            "choose --peft lora, or --train_mode fed"
        )


def without_effect(config: FedConfig) -> list[str]:
    """What to say of options that belong to choices that are not made."""
    said = idle_in_partition(config)
    if config.train_mode != "fedGradFocus":
        names = {field.name for field in fields(GradientPriority)}
        said += idle(config, names, f"with train_mode {config.train_mode}, which trains all layers")
    if config.peft == "lora":
        said += idle(config, ["num_virtual_tokens"], "with peft lora")
    rule = chosen(config)["client_rule"].partition(":")[0]
    if rule != "proximal" and not is_plugged("client_rule", rule):  # a plugin's may take it too
        said += idle(config, ["prox_mu"], f"with client_rule {rule}")
    return said


def _check_ranks(config: FedConfig) -> None:
    if isinstance(config.lora_r, int):
        return
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5})*", config.lora_r) or not all(
        1 <= rank <= 16_384 for rank in config.ranks
    ):
        raise UserError(
            f"lora_r: {shown(config.lora_r)} is not a whole number from 1 to 16,384, or several with commas "
            "between; write for example 16, or 4,8,16"
        )
    if config.peft != "lora":
        raise UserError(
            f"lora_r: {config.lora_r} gives clients ranks of their own, and {config.peft} has no rank; "
            "choose --peft lora, or leave lora_r out"
        )
    if config.train_mode != "fed":
        raise UserError(
            f"lora_r: {config.lora_r} gives clients ranks of their own, and train_mode {config.train_mode} "
            "needs one for all; choose --train_mode fed, or one rank"
        )


def check_target_modules(given: str | None) -> None:
    """Judge the names of the layers that get LoRA.

    Raises:
        UserError: There is no name, or a text with the signs of a regular expression is none.
    """
    names = names_or_pattern(given)
    if given is not None and not names:
        raise UserError(
            f"target_modules: {given!r} names no layer; give names with commas between, a regular "
            "expression, all-linear, or none"
        )
    if isinstance(names, str):
        try:
            re.compile(names)
        except re.error as error:
            raise UserError(
                f"target_modules: {given} is no regular expression ({error}); give one that fits the whole "
                "names of layers, or names with commas between"
            ) from None


def check_rules(config: Any) -> None:
    """Judge each option of a dataclass of options by the rule that it declares.

    Raises:
        UserError: A value breaks its rule.
    """
    for option in options(type(config)):
        value = getattr(config, option.name)
        if not option.allows(value):
            raise UserError(option.explain(value))


def check_values(config: Any) -> None:
    """Judge each option of a run for itself: `check_rules`, and the device and the name that every run has.

    Raises:
        UserError: A value breaks its rule.
    """
    check_rules(config)
    check_device(config.device)
    if isinstance(config, Run):
        check_trackers(config.report_to)
    if isinstance(config, Partition):
        check_partition(config)
    if isinstance(config, OwnData):
        check_own_data(config)
    if isinstance(config, Prompts):
        check_prompts(config.prompt_format, config.prompt_date)
    if config.exp_name in _NO_FOLDER_NAMES or re.search(r"[/\\]", config.exp_name):
        raise UserError(
            f"exp_name: {shown(config.exp_name)!r} is not the name of one folder; "
            "leave out slashes, and choose the place with out_dir"
        )


def check_prompts(name: object, day: object) -> None:
    """Judge how questions are put to a model: `prompt_format` and `prompt_date`.

    Raises:
        UserError: There is no such format, or no such day.
    """
    formats = get_args(FormatName)
    if name not in formats:
        raise UserError(
            f"prompt_format: {name} is not one of {', '.join(formats)}{did_you_mean(name, formats)}"
        )
    try:
        known = date.fromisoformat(str(day)).isoformat() == str(day)
    except ValueError:
        known = False
    if not known:
        raise UserError(
            f"prompt_date: {day} is no day of the form YYYY-MM-DD; write for example {PROMPT_DATE}"
        )


def check_device(device: str) -> None:
    """Judge the name of a device.

    Raises:
        UserError: There can be no device of this name.
    """
    if not _DEVICE.fullmatch(device):
        nearest = did_you_mean(device, ("auto", "cpu", "cuda", "cuda:0"), others=DEVICES)
        raise UserError(f"device: {shown(device)} is not auto, cpu, cuda or cuda:N{nearest}")
