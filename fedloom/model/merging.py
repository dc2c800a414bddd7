"""Low-rank terms added to the weights that they stand beside: a model that needs no adapter any more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def merged(model: PreTrainedModel, folders: Sequence[Path]) -> PreTrainedModel:
    """The mean of the models that the base makes with each adapter: ``W + 1/n Σ_k (alpha_k / r_k) B_k A_k``.

    It is the products that are averaged: the mean of A times the mean of B would be another model (FLoRA,
    Wang et al., 2024, arXiv:2409.05976). Layers that train whole, such as a classifier's head, are averaged
    as they are. With one adapter this is PEFT's `merge_and_unload`.

    Args:
        model: The base, with ordinary weights; changed in place.
        folders: LoRA adapters for it, as PEFT saves them, at least one; their ranks may differ.

    Raises:
        ValueError: A merged weight is not finite.
    """
    names = [f"adapter-{number}" for number in range(len(folders))]
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT's, of transformers
        wrapped = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            wrapped.load_adapter(str(folder), adapter_name=name)
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            for name in names:
                if name in module.scaling:
                    module.scaling[name] /= len(names)
        elif isinstance(module, ModulesToSaveWrapper):
            _average([module.modules_to_save[name] for name in names])
    wrapped.set_adapter(names[0])  # of the layers that train whole, PEFT keeps the active adapter's
    whole: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True, adapter_names=names)
    return whole


def _average(copies: Sequence[nn.Module]) -> None:
    """Put the mean of several copies of a module into the first."""
    every = [dict(copy.named_parameters()) for copy in copies]
    for name, first in every[0].items():
        first.copy_(torch.stack([parameters[name] for parameters in every]).mean(0))
