"""A square matrix between LoRA's factors: ``y = W_0 x + s B R A x``, with R ``[rank, rank]``.

Where an adapter has an R, ``NAME.lora_R.weight`` beside ``NAME.lora_A.weight`` and ``NAME.lora_B.weight``,
the engine runs on the ordinary LoRA whose B is B R. Autograd takes R's gradient off that of B R, as
Bᵀ ∂(B R), so that no other kernel is needed; and a saved adapter is one of LoRA, which PEFT loads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import Row

R = ".lora_R.weight"
"""What follows a module's name in that of its R."""


def with_square(adapter: Row) -> Row:
    """An adapter with R = I between the factors of every module: the same function."""
    found = dict(adapter)
    for name_a, name_b in lora_pairs(adapter.keys()):
        rank = adapter[name_b].shape[-1]
        found[name_a.removesuffix(".lora_A.weight") + R] = torch.eye(rank).to(adapter[name_b])
    return found


def as_lora(parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Parameters without any R, in the factors A and B R of the same products; differentiable.

    Args:
        parameters: ``{name: tensor[*clients, *shape]}``.
    """
    squares = {name.removesuffix(R): t for name, t in parameters.items() if name.endswith(R)}
    if not squares:
        return parameters
    found = {name: t for name, t in parameters.items() if not name.endswith(R)}
    for module, square in squares.items():
        found[f"{module}.lora_B.weight"] = parameters[f"{module}.lora_B.weight"] @ square
    return found
