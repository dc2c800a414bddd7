"""What of PEFT's adapters runs stacked; everything else is refused by name, never left out in silence."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND, ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedloom.errors import UserError
from fedloom.model.adapters.prompts import PROMPT
from fedloom.model.bank import Row

ADAPTER = "default"
"""What PEFT calls an adapter that nobody names."""

LINEAR = (nn.Linear, Conv1D)
"""Modules that may have a low-rank term; those of bitsandbytes are kinds of `nn.Linear`."""

# Which modules, of which rank and scale: PEFT builds its adapter from these, and ours is read off that.
_BUILT_BY_PEFT = {
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "fan_in_fan_out",  # PEFT sets it by the layer that it finds; it matters to a merge alone
    "task_type",
    "peft_type",
    "num_virtual_tokens",
    "token_dim",
    "num_layers",
    "num_attention_heads",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_dropout",
}
# How an adapter starts and trains, where it came from, and where it is computed: no part of its function.
NOT_OF_THE_FUNCTION = {
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "runtime_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "qalora_group_size",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
}
# With these values alone; an option that is not listed anywhere must be as a new PEFT's defaults leave it:
# off.
_ONLY: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # The others change the base's own weights before they train.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    # Of a saved adapter it is not known, nor needed: only the virtual tokens that it made are saved.
    "encoder_reparameterization_type": ("MLP", "LSTM"),
    "num_transformer_submodules": (None, 1),
}
_OFF: tuple[Any, ...] = (None, False, [], {}, ())


def check_config(config: PeftConfig, where: str) -> None:
    """Refuse options of an adapter that do not run stacked.

    Args:
        config: LoRA, prompt tuning or p-tuning.
        where: What it is the configuration of, for the message.

    Raises:
        UserError: Names the option, its value, and what runs.
    """
    for name, value in sorted(vars(config).items()):
        if name.startswith("_") or name in _BUILT_BY_PEFT or name in NOT_OF_THE_FUNCTION:
            continue
        allowed = _ONLY.get(name)
        if (value not in _OFF) if allowed is None else (getattr(value, "value", value) not in allowed):
            plain = "it left out" if allowed is None else " or ".join(map(repr, allowed))
            raise UserError(f"{where}: {name} is {str(value)[:80]}; fedloom runs plain LoRA, with {plain}")


def check_adapter(model: PreTrainedModel, config: PeftConfig, where: str = "target_modules") -> Row:
    """Let PEFT put an adapter into a copy of a model without weights, and look at what becomes of it.

    Args:
        model: As `without_weights` makes it; not changed.
        config: The adapter; it is not changed.
        where: What the user gave it by, for the message.

    Returns:
        The adapter that would train: names and shapes, no numbers.

    Raises:
        UserError: PEFT does not take the adapter, or it holds something that does not run stacked.
    """
    config = copy.deepcopy(config)
    return trained(build(copy.deepcopy(model), config, where, low_cpu_mem_usage=True), config)


def build(model: PreTrainedModel, config: PeftConfig, where: str = "adapter", **options: bool) -> nn.Module:
    """PEFT's own adapter in a model, of which every part is known to run stacked.

    Args:
        model: Changed in place.
        config: LoRA, prompt tuning or p-tuning; PEFT completes it.
        where: What the user gave it by, for the message.
        **options: Of `get_peft_model`.

    Raises:
        UserError: As `check_adapter`.
    """
    check_config(config, where)
    if config.peft_type == PeftType.LORA:
        for name, module in _matched(model, config):
            if not is_linear(module):
                raise UserError(
                    f"{where}: {name} is {_kind(module)}; fedloom runs LoRA on linear layers. Name some of "
                    f"{', '.join(linear_names(model))}, or {INCLUDE_LINEAR_LAYERS_SHORTHAND}"
                )
    with warnings.catch_warnings():
        # PEFT's layers are thrown away at once; what they warn of does not concern ours.
        warnings.simplefilter("ignore")
        try:
            wrapped = get_peft_model(model, config, **options)
        except (
            ValueError,
            TypeError,
            NotImplementedError,
            AttributeError,
            KeyError,
            RuntimeError,
            re.error,
        ) as error:
            message = " ".join(str(error).split())
            raise UserError(f"{where}: PEFT does not take this adapter ({message[:240]})") from error
    prefix = next((f"{name}." for name, module in wrapped.named_modules() if module is model), "")
    for full_name, module in wrapped.named_modules():
        name = full_name.removeprefix(prefix)
        if isinstance(module, LoraLayer) and not is_linear(module.get_base_layer()):
            raise UserError(
                f"{where}: {name} would be {_kind(module.get_base_layer())} with LoRA; fedloom runs LoRA on "
                "linear layers"
            )
        if isinstance(module, ModulesToSaveWrapper):
            _check_saved(where, config.modules_to_save or (), name, module.original_module)
    return wrapped


def trained(wrapped: nn.Module, config: PeftConfig) -> Row:
    """The parameters that PEFT's adapter trains, under the names under which it saves them."""
    return {saved_name(name, config): p.detach() for name, p in wrapped.named_parameters() if p.requires_grad}


def saved_name(name: str, config: PeftConfig) -> str:
    """The name under which PEFT saves a parameter, from the one under which it trains it."""
    if config.peft_type == PeftType.PROMPT_TUNING and name.startswith("prompt_encoder."):
        return PROMPT
    return name.replace(f".modules_to_save.{ADAPTER}", "").replace(f".{ADAPTER}", "")


def linear_names(model: nn.Module, within: str = "") -> list[str]:
    """What the linear layers below ``within`` are called, without the language model's head: `q_proj`, ..."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    below = f"{within}." if within else ""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if is_linear(module) and module is not head and name.startswith(below)
        }
    )


@torch.no_grad()
def is_linear(module: nn.Module) -> bool:
    """Whether a module may have a low-rank term: it maps each row ``[d_in]`` to a row ``[d_out]``.

    A kind of `nn.Linear` that an architecture wrote for itself may do something else, such as DeepSeek-V4's,
    which multiplies several rows by a block of its weight each.
    """
    rewritten = (
        type(module).__module__.startswith("transformers.") and type(module).forward is not nn.Linear.forward
    )
    if not isinstance(module, nn.Linear) or not rewritten:
        return isinstance(module, LINEAR)
    rows = torch.zeros(3, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        return module(rows).shape == (3, module.out_features)
    except (RuntimeError, TypeError):
        return False


def _matched(model: nn.Module, config: PeftConfig) -> Iterator[tuple[str, nn.Module]]:
    """The modules that PEFT will take ``target_modules`` to mean."""
    if config.target_modules is None or config.target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    for name, module in model.named_modules():
        if name and check_target_module_exists(config, name):
            yield name, module


def _check_saved(where: str, asked: Sequence[str], name: str, module: nn.Module) -> None:
    """Of what trains whole, every client's own linear layers run side by side, and nothing else does."""
    for inner, part in module.named_modules():
        if dict(part.named_parameters(recurse=False)) and not isinstance(part, nn.Linear):
            entry = next((each for each in asked if name.endswith(each)), name)
            raise UserError(
                f"{where}: modules_to_save {entry} means {name}{inner and '.'}{inner}, {_kind(part)}; "
                "fedloom runs linear layers there, such as a head that classifies. Use this adapter with "
                "PEFT, or train one without it"
            )


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Embedding):
        return f"an embedding ({name})"
    if "norm" in name.lower():
        return f"a norm ({name})"
    if any(is_linear(part) for part in module.modules()):
        return f"a whole block ({name})"
    return f"no linear layer ({name})"
