"""A loaded model once more without reading or copying its weights, for runs that follow each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own over the same frozen numbers.

    Modules, parameters and the configuration are new: what is put into the one, replaced in it or hung on it
    is not in the other. The memory of weights and buffers is shared, so nobody may write into it; see
    `writes`.

    Args:
        model: Neither quantised, whose weights have state of their own, nor with code that came along.
    """
    known: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    known |= {id(b): b.detach() for b in model.buffers()}
    return copy.deepcopy(model, known)


def writes(model: nn.Module) -> tuple[int, ...]:
    """How often each weight and buffer has been written into, by the model or a twin, as PyTorch counts it.

    Args:
        model: Equal results mean that its numbers are what they were.
    """
    return tuple(t._version for t in _tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
