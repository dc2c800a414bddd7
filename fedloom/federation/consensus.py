"""How far peers are apart: the consensus error of their low-rank terms.

For a module with factors B_i ``[d_out, r]`` and A_i ``[r, d_in]`` of peer i, and B̄, Ā the means over
peers, the error is the mean over peers of Σ over modules ‖B_i A_i − B̄ Ā‖_F, as the original of DFL-LoRA
reports it. No peer's product is ever made: the difference has factors of rank 2r, and its norm comes from
their 2r x 2r Gram matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedloom.model.bank import AdapterBank, Row


@dataclass(frozen=True)
class Consensus:
    """Consensus error of all peers.

    Attributes:
        error: Mean over peers of the sum over modules of ‖B_i A_i − B̄ Ā‖_F.
        relative: The same, relative to the sum over modules of ‖mean_i(B_i A_i)‖_F; nan while that is 0.
    """

    error: float
    relative: float


@torch.no_grad()
def consensus(bank: AdapterBank, used: Row, modules: Sequence[str]) -> Consensus:
    """The consensus error of peers' adapters.

    Args:
        bank: A row per peer.
        used: Parameters that all peers share and nobody trains; with DFL-LoRA every A.
        modules: PEFT's names of the adapted modules, without ``.lora_A.weight``.
    """
    error = torch.zeros(bank.clients, dtype=torch.float64)
    size = 0.0
    for module in modules:
        A, B = (_stacked(bank, used, f"{module}.lora_{factor}.weight") for factor in "AB")
        error += _distances(A, B).cpu()
        size += _norm_of_mean(A, B)
    mean = float(error.mean())
    return Consensus(mean, mean / size if size else float("nan"))


def _stacked(bank: AdapterBank, used: Row, name: str) -> Float64[Tensor, "peers rows columns"]:
    if name in bank.tensors:
        return bank.tensors[name].double()
    return used[name].double().expand(bank.clients, *used[name].shape)


def _distances(
    A: Float[Tensor, "peers rank d_in"], B: Float[Tensor, "peers d_out rank"]
) -> Float[Tensor, " peers"]:
    """‖B_i A_i − B̄ Ā‖_F of every peer."""
    mean_A, mean_B = A.mean(0), B.mean(0)
    # B_i A_i − B̄ Ā = (B_i − B̄) A_i + B̄ (A_i − Ā): nothing large cancels when peers are close.
    left = torch.cat([B - mean_B, mean_B.expand_as(B)], 2)
    right = torch.cat([A, A - mean_A], 1)
    return _product_norms(left, right)


def _product_norms(
    left: Float[Tensor, "peers d_out rank"], right: Float[Tensor, "peers rank d_in"]
) -> Float[Tensor, " peers"]:
    """‖L_i R_i‖_F from Gram matrices: ‖LR‖² = Σ (LᵀL) ∘ (RRᵀ)."""
    squares = ((left.mT @ left) * (right @ right.mT)).sum((1, 2))
    return squares.clamp(min=0).sqrt()


def _norm_of_mean(A: Float[Tensor, "peers rank d_in"], B: Float[Tensor, "peers d_out rank"]) -> float:
    """‖mean_i(B_i A_i)‖_F: the sum of products is one product of all factors side by side."""
    peers, rank, d_in = A.shape
    left = B.transpose(0, 1).reshape(B.shape[1], peers * rank)
    right = A.reshape(peers * rank, d_in)
    if peers * rank > min(left.shape[0], d_in):
        # Of many peers the Gram matrices are the larger thing: the mean is one d_out x d_in, of no peer.
        return float(torch.linalg.matrix_norm(left @ right)) / peers
    return float(_product_norms(left[None], right[None])[0]) / peers
