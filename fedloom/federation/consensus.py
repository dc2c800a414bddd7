"""How far peers are apart: the consensus error of their low-rank terms.

For a module with factors B_i ``[d_out, r]`` and A_i ``[r, d_in]`` of peer i, and B̄, Ā the means over
peers, the error is the mean over peers of Σ over modules ‖B_i A_i − B̄ Ā‖_F, as the original of DFL-LoRA
reports it. No peer's product is ever made: the difference has factors of rank 2r, and its norm comes from
their 2r x 2r Gram matrices.

Where each peer has a residual P_i Q_i beside its factors (`lora_aggregations.fedex`), means of P and of Q
mean nothing. Then the error is that of ‖B_i A_i + P_i Q_i − mean_j(B_j A_j + P_j Q_j)‖_F, of matrices that
are made, those of one module at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedloom.model.adapters.products import DOWN, UP, product_norms, truncated_product
from fedloom.model.adapters.square import as_lora
from fedloom.model.bank import AdapterBank, Row

_BLOCK = 1024
"""Peers whose differences, four times their rows in float64, are there at once."""

Total = Callable[[Row], Row]
"""``sums over the peers that are here -> sums over all peers``."""


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
def consensus(
    bank: AdapterBank,
    frozen: Row,
    modules: Sequence[str],
    peers: int | None = None,
    total: Total = lambda local: local,
) -> Consensus:
    """The consensus error of peers' adapters.

    Args:
        bank: A row per peer.
        frozen: Parameters that all peers share and nobody trains; with DFL-LoRA every A.
        modules: PEFT's names of the adapted modules, without ``.lora_A.weight``.
        peers: How many there are, where others are elsewhere; None: these are all.
        total: Adds the sums of the others. No row is asked for: summed are each module's factors that differ,
            and where both do, also their product.
    """
    count = bank.clients if peers is None else peers
    fixed = {name: t.expand(bank.clients, *t.shape) for name, t in frozen.items()}
    whole = as_lora(fixed | bank.tensors)  # with matrices between factors that nobody trains B is each one's
    bank = AdapterBank({name: t for name, t in whole.items() if t is not fixed.get(name)})
    error = torch.zeros(bank.clients, dtype=torch.float64)
    size = 0.0
    for module in modules:
        A, B = (_stacked(bank, frozen, f"{module}.lora_{factor}.weight") for factor in "AB")
        if module + UP in bank.tensors:
            A, B = _with_residual(bank, module, A, B)
            mean_product = total({"BA": _sum_of_products(A, B)})["BA"] / count
            away = [torch.linalg.matrix_norm(b @ a - mean_product) for a, b in zip(A, B, strict=True)]
            error += torch.stack(away).cpu()
            size += float(torch.linalg.matrix_norm(mean_product))
            continue
        one_A = f"{module}.lora_A.weight" not in bank.tensors
        sums = {"B": B.sum(0)} if one_A else {"A": A.sum(0), "B": B.sum(0)}
        if not one_A and count > bank.clients:
            sums["BA"] = _sum_of_products(A, B)
        sums = total(sums)
        mean_A, mean_B = A[0] if one_A else sums["A"] / count, sums["B"] / count
        for start in range(0, bank.clients, _BLOCK):
            block = slice(start, start + _BLOCK)
            error[block] += _distances(A[block], B[block], mean_A, mean_B).cpu()
        if one_A:
            size += float(product_norms(mean_B[None], mean_A[None])[0])
        elif "BA" in sums:
            size += float(torch.linalg.matrix_norm(sums["BA"])) / count
        else:
            size += _norm_of_mean(A, B)
    mean = float(total({"error": error.sum()})["error"]) / count
    return Consensus(mean, mean / size if size else float("nan"))


@torch.no_grad()
def mean_adapter(bank: AdapterBank, count: int, total: Total = lambda local: local) -> Row:
    """One adapter for the mean of peers: of their factors, and with residuals beside them of their products.

    The mean's residual is the nearest of their rank, as if all were each other's neighbours.

    Args:
        bank: A row per peer of those that are here.
        count: How many there are in all.
        total: Adds the sums of the others.
    """
    mean = total({name: t.sum(0) / count for name, t in bank.tensors.items()})
    for module in [name.removesuffix(UP) for name in mean if name.endswith(UP)]:
        name_a, name_b = (f"{module}.lora_{factor}.weight" for factor in "AB")
        A, B = _with_residual(bank, module, bank.tensors[name_a].double(), bank.tensors[name_b].double())
        missed = total({"BA": _sum_of_products(A, B)})["BA"] / count
        missed = missed - mean[name_b].double() @ mean[name_a].double()
        whole = torch.eye(missed.shape[1]).to(missed)
        P, Q = truncated_product(missed, whole, len(mean[module + DOWN]))
        mean |= {module + UP: P.to(mean[name_b]), module + DOWN: Q.to(mean[name_a])}
    return mean


def _with_residual(
    bank: AdapterBank,
    module: str,
    A: Float64[Tensor, "peers rank d_in"],
    B: Float64[Tensor, "peers d_out rank"],
) -> tuple[Float64[Tensor, "peers more d_in"], Float64[Tensor, "peers d_out more"]]:
    """Factors of B_i A_i + P_i Q_i."""
    P, Q = bank.tensors[module + UP].double(), bank.tensors[module + DOWN].double()
    return torch.cat([A, Q], 1), torch.cat([B, P], 2)


def _stacked(bank: AdapterBank, frozen: Row, name: str) -> Float64[Tensor, "peers rows columns"]:
    if name in bank.tensors:
        return bank.tensors[name].double()
    return frozen[name].double().expand(bank.clients, *frozen[name].shape)


def _distances(
    A: Float[Tensor, "peers rank d_in"],
    B: Float[Tensor, "peers d_out rank"],
    mean_A: Float[Tensor, "rank d_in"],
    mean_B: Float[Tensor, "d_out rank"],
) -> Float[Tensor, " peers"]:
    """‖B_i A_i − B̄ Ā‖_F of every peer."""
    # B_i A_i − B̄ Ā = (B_i − B̄) A_i + B̄ (A_i − Ā): nothing large cancels when peers are close.
    left = torch.cat([B - mean_B, mean_B.expand_as(B)], 2)
    right = torch.cat([A, A - mean_A], 1)
    return product_norms(left, right)


def _norm_of_mean(A: Float[Tensor, "peers rank d_in"], B: Float[Tensor, "peers d_out rank"]) -> float:
    """‖mean_i(B_i A_i)‖_F: the sum of products is one product of all factors side by side."""
    peers, rank, d_in = A.shape
    left, right = _side_by_side(A, B)
    if peers * rank > min(left.shape[0], d_in):
        # Of many peers the Gram matrices are the larger thing: the mean is one d_out x d_in, of no peer.
        return float(torch.linalg.matrix_norm(left @ right)) / peers
    return float(product_norms(left[None], right[None])[0]) / peers


def _sum_of_products(
    A: Float[Tensor, "peers rank d_in"], B: Float[Tensor, "peers d_out rank"]
) -> Float[Tensor, "d_out d_in"]:
    left, right = _side_by_side(A, B)
    return left @ right


def _side_by_side(
    A: Float[Tensor, "peers rank d_in"], B: Float[Tensor, "peers d_out rank"]
) -> tuple[Float[Tensor, "d_out all_ranks"], Float[Tensor, "all_ranks d_in"]]:
    """Factors of Σ_i B_i A_i."""
    return B.transpose(0, 1).flatten(1), A.flatten(0, 1)
