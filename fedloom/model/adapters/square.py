"""Square matrices between LoRA's factors: ``y = W_0 x + s B R A x``, with R ``[rank, rank]``.

Where an adapter has an R, ``NAME.lora_R.weight`` beside ``NAME.lora_A.weight`` and ``NAME.lora_B.weight``,
the engine runs on the ordinary LoRA whose B is B R. Autograd takes R's gradient off that of B R, as
Bᵀ ∂(B R), so that no other kernel is needed; and a saved adapter is one of LoRA, which PEFT loads. An R
``[heads, rank / heads, rank / heads]`` has these as the blocks of its diagonal, each times its scale in
``NAME.lora_S.weight`` ``[heads]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedloom.data.randomness import derive_seed
from fedloom.errors import UserError
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import Row

R = ".lora_R.weight"
"""What follows a module's name in that of its R."""

S = ".lora_S.weight"
"""What follows it in that of the scales of R's blocks."""


def with_square(adapter: Row, seed: int = 0) -> Row:
    """An adapter with R = I between the factors of every module: the same function, whatever the seed."""
    found = dict(adapter)
    for name_a, name_b in lora_pairs(adapter.keys()):
        rank = adapter[name_b].shape[-1]
        found[name_a.removesuffix(".lora_A.weight") + R] = torch.eye(rank).to(adapter[name_b])
    return found


def with_heads(adapter: Row, seed: int, heads: int) -> Row:
    """An adapter with blocks of 0 on R's diagonal, scales of 1, and orthonormal factors drawn at random.

    Where a layer is narrower than the rank, what of a factor is beyond is zero.

    Args:
        adapter: LoRA.
        seed: Of the factors.
        heads: Blocks.

    Raises:
        UserError: The rank is no multiple of them.
    """
    found = dict(adapter)
    for name_a, name_b in lora_pairs(adapter.keys()):
        rank, module = adapter[name_b].shape[-1], name_a.removesuffix(".lora_A.weight")
        if rank % heads:
            raise UserError(
                f"lora_r: {rank} is no multiple of {heads} heads, among which it is divided; choose one that "
                "is, or another number of heads, as in --lora_aggregation ravan:4"
            )
        for name, t in ((name_a, adapter[name_a].T), (name_b, adapter[name_b])):
            draws = torch.Generator().manual_seed(derive_seed(seed, name))
            basis = torch.linalg.qr(torch.randn(t.shape, generator=draws, dtype=torch.float64)).Q
            wide = torch.zeros_like(t)
            wide[:, : basis.shape[1]] = basis.to(t)
            found[name] = (wide.T if name == name_a else wide).contiguous()
        blocks = adapter[name_b].new_zeros(heads, rank // heads, rank // heads)
        found |= {module + R: blocks, module + S: blocks.new_ones(heads)}
    return found


def as_lora(parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Parameters without any R, in the factors A and B R of the same products; differentiable.

    Args:
        parameters: ``{name: tensor[*clients, *shape]}``.
    """
    squares = {name.removesuffix(R): t for name, t in parameters.items() if name.endswith(R)}
    if not squares:
        return parameters
    found = {name: t for name, t in parameters.items() if not name.endswith((R, S))}
    for module, square in squares.items():
        B = parameters[f"{module}.lora_B.weight"]
        if (scales := parameters.get(module + S)) is None:
            found[f"{module}.lora_B.weight"] = B @ square
            continue
        blocks = square * scales[..., None, None]
        by_head = B.unflatten(-1, blocks.shape[-3:-1])  # [*clients, d_out, heads, rank / heads]
        found[f"{module}.lora_B.weight"] = torch.einsum("...ohq,...hqp->...ohp", by_head, blocks).flatten(-2)
    return found
