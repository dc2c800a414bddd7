"""Put stacked adapters where PEFT would put its own, under PEFT's names and with PEFT's initial values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from peft import PeftConfig, PeftType
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from fedloom.model.adapters.heads import StackedLinear
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.supported import ADAPTER, build, trained
from fedloom.model.bank import Row
from fedloom.model.layers import layer_of
from fedloom.model.wave import Wave, replace_module


class Adapted(NamedTuple):
    """An adapted projection: PEFT's name for it, LoRA's ``alpha / r``, and the frozen layer."""

    name: str
    scale: float
    base: nn.Module


def inject(model: PreTrainedModel, config: PeftConfig, wave: Wave, seed: int) -> tuple[Row, int]:
    """Let PEFT build its adapter once, read names and initial values off it, and put ours in its place.

    Args:
        model: Changed in place: adapted layers become `StackedLora`, heads that train `StackedLinear`.
        config: LoRA, prompt tuning or p-tuning.
        wave: What the new modules look at to know whose tokens pass through them.
        seed: Of the initial adapter.

    Returns:
        The initial adapter (at least float32), and the number of virtual tokens before each sequence.

    Raises:
        UserError: Something of the adapter does not run stacked.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        wrapped = build(model, config)
    initial = {
        name: p.to(torch.promote_types(p.dtype, torch.float32), copy=True)
        for name, p in trained(wrapped, config).items()
    }
    prefix = next((name for name, module in wrapped.named_modules() if module is model), "")
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            stacked = StackedLora(
                module.get_base_layer(),
                f"{prefix}.{name}",
                module.scaling[ADAPTER],
                config.lora_dropout,
                wave,
            )
            replace_module(model, name, stacked)
        elif isinstance(module, ModulesToSaveWrapper):
            replace_module(model, name, _stacked_head(module.original_module, f"{prefix}.{name}", wave))
    model.requires_grad_(False)
    return initial, 0 if config.peft_type == PeftType.LORA else config.num_virtual_tokens


def _stacked_head(head: nn.Module, name: str, wave: Wave) -> nn.Module:
    if isinstance(head, nn.Linear):
        return StackedLinear(head, name, wave)
    for inner, module in list(head.named_modules()):
        if isinstance(module, nn.Linear):
            replace_module(head, inner, StackedLinear(module, f"{name}.{inner}", wave))
    return head


def adapted_by_layer(model: nn.Module, layers_name: str) -> dict[int, list[Adapted]]:
    """For each transformer layer with LoRA, by its number, its adapted projections."""
    found: dict[int, list[Adapted]] = {}
    for name, module in model.named_modules():
        layer = layer_of(name, layers_name)
        if layer is not None and isinstance(module, StackedLora):
            found.setdefault(layer, []).append(Adapted(module.name, module.scale, module.base))
    return found
