"""Handles on a transformer's trunk that differ by architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as TrunkOutput


def position_offset(trunk: nn.Module) -> int:
    """RoBERTa counts positions from its padding index + 1; everybody else from 0."""
    for name, module in trunk.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def keep_backward(model: PreTrainedModel) -> None:
    """Keep bitsandbytes' CPU layers from repacking their weights for a kernel that has no backward."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def answering(trunk: nn.Module, answer: TrunkOutput) -> Iterator[None]:
    """Let ``trunk`` return ``answer`` without computing anything."""
    trunk.forward = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        del trunk.forward


@contextmanager
def without_pooler(trunk: nn.Module) -> Iterator[None]:
    """BERT's pooler would take the first token of the whole pass; it belongs to the head, see `_head`."""
    pooler = getattr(trunk, "pooler", None)
    if pooler is None:
        yield
        return
    setattr(trunk, "pooler", None)  # noqa: B010 - a plain assignment is no Module to the type checker
    try:
        yield
    finally:
        setattr(trunk, "pooler", pooler)  # noqa: B010
