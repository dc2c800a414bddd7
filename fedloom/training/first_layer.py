"""What enters the first adapted layer for every token of the vocabulary: who has the base knows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedloom.model.adapters.lora import StackedLora
from fedloom.model.stacked import StackedModel

_CANDIDATES = 4096
"""Tokens of the vocabulary that go through the embedding at once."""


class _Seen(Exception):
    """Ends a pass behind the first layer's inputs."""


@dataclass(frozen=True)
class FirstLayer:
    """The modules whose input is a function of a token and its place alone.

    Attributes:
        names: Theirs.
        modules: They.
        by_place: Whether the place matters.
        dtype: What they compute in.
    """

    names: list[str]
    modules: list[nn.Module]
    by_place: bool
    dtype: torch.dtype


def first_layer(model: StackedModel) -> FirstLayer | None:
    """The adapted modules of the first layer that read embeddings; None where there are none."""
    if not model.adapted:
        return None
    names = [name for name, *_ in model.adapted[min(model.adapted)]]
    modules = [m for m in model.model.modules() if isinstance(m, StackedLora) and m.name in names]
    # The second and the fourth token are the same in the first two rows, and what stands before them is not.
    inputs = _inputs(model, modules, torch.tensor([[5, 6, 7, 8], [9, 6, 5, 8], [6, 5, 7, 8]]))
    readers = {
        id(m): m
        for m in modules
        if (x := inputs.get(id(m))) is not None
        and torch.allclose(x[0, [1, 3]], x[1, [1, 3]], atol=1e-5 * float(x.abs().max()))
    }
    if not readers:
        return None
    x = inputs[next(iter(readers))]
    anywhere = torch.allclose(x[0, 1], x[2, 0], atol=1e-5 * float(x.abs().max()))
    return FirstLayer([m.name for m in readers.values()], [*readers.values()], not anywhere, x.dtype)


def _inputs(
    model: StackedModel, modules: Sequence[nn.Module], ids: Tensor, stop: bool = False
) -> dict[int, Tensor]:
    """What enters some modules when the frozen base reads some sequences, ``[sequences, tokens, d_in]``."""
    seen: dict[int, Tensor] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[id(module)] = args[0].detach().reshape(*ids.shape, -1)
        if stop:
            raise _Seen

    hooks = [module.register_forward_pre_hook(look) for module in modules]
    try:
        with torch.no_grad(), suppress(_Seen), model.as_clients({}, [len(ids)]) as plain:
            plain(input_ids=ids.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def candidates(
    model: StackedModel, first: FirstLayer, vocabulary: int, places: int
) -> Iterator[tuple[int, Tensor]]:
    """What enters the first layer for each token of the vocabulary, at each place that matters.

    Yields:
        The first token of a block, and the inputs from there on, ``[tokens, places, d_in]``.
    """
    size = -(-_CANDIDATES // places)
    for start in range(0, vocabulary, size):
        block = torch.arange(start, min(start + size, vocabulary))
        ids = block[:, None].expand(-1, places)  # one token, over and over
        (x,) = _inputs(model, first.modules[:1], ids, stop=True).values()
        yield start, x
