"""Norms and distances of what senders changed, for aggregators that look at a whole change at once.

What a change does to the model is its products: with A, B the factors before it, sender k changes a module by

    ΔW_k = (B + δB_k) (A + δA_k) − B A = [δB_k, B] · [A + δA_k; δA_k]

Factors have a gauge freedom: (c A, B / c) is the same product. A small change of factors may be a large one
of the product, which an attacker would hide in their distances; and a change of nothing but the gauge ruins a
mean of factors, while products alone would not show it. So both count. A change is the point

    (ΔW of every module with both factors, δ of every parameter)

and its inner products are sums of both kinds. ΔW_k is never built: ⟨L_i R_i, L_j R_j⟩ = Σ (L_iᵀ L_j) ∘ (R_i
R_jᵀ). All that an aggregator needs is the matrix of these inner products: of a combination Σ_k a_k Δ_k of
changes the distances are quadratic forms in a. (The ΔW of combined factors is not exactly that combination.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from fedloom.federation.aggregators import Changes
from fedloom.model.bank import Row


def inner_products(changes: Changes) -> Float64[Tensor, "senders senders"]:
    """⟨Δ_i, Δ_j⟩ of all senders; one whose own is not finite in float64 is as far as can be."""
    before, deltas = changes.before, changes.deltas.tensors
    total = sum(flat @ flat.T for flat in (t.double().flatten(1) for t in deltas.values()))
    assert isinstance(total, Tensor)
    for name_a, name_b in changes.pairs:
        A, B = before[name_a].double(), before[name_b].double()
        dA, dB = deltas[name_a].double(), deltas[name_b].double()
        left = torch.cat([dB, B.expand_as(dB)], 2)  # [senders, d_out, 2 · rank]
        right = torch.cat([A + dA, dA], 1)  # [senders, 2 · rank, d_in]
        senders, twice, _ = right.shape
        columns, rows = left.transpose(0, 1).flatten(1), right.flatten(0, 1)
        products = (columns.T @ columns) * (rows @ rows.T)
        total = total + products.view(senders, twice, senders, twice).sum((1, 3))
    total = total.cpu()
    beyond = ~total.diagonal().isfinite()
    total = torch.where(beyond[:, None] | beyond[None, :], 0.0, total)
    return total + torch.diag(beyond.double() * _FAR)


_FAR = 1e300


def lengths(changes: Changes) -> Float64[Tensor, " senders"]:
    """‖Δ_k‖ of every sender: the roots of the diagonal of `inner_products`, without the rest of it."""
    before, deltas = changes.before, changes.deltas.tensors
    total = torch.stack([t.double().flatten(1).square().sum(1) for t in deltas.values()]).sum(0)
    for name_a, name_b in changes.pairs:
        A, B = before[name_a].double(), before[name_b].double()
        dA, dB = deltas[name_a].double(), deltas[name_b].double()
        # ‖δB (A + δA) + B δA‖² from Gram matrices of rank times rank.
        after, across = A + dA, dB.mT @ B
        total += ((dB.mT @ dB) * (after @ after.mT)).sum((1, 2))
        total += 2 * (across * (after @ dA.mT)).sum((1, 2))
        total += ((B.mT @ B) * (dA @ dA.mT)).sum((1, 2))
    total = total.clamp(min=0).sqrt().cpu()
    return torch.where(total.isfinite(), total, _FAR**0.5)


def squared_distances(
    products: Float64[Tensor, "senders senders"], a: Float64[Tensor, " senders"]
) -> Float64[Tensor, " senders"]:
    """‖Δ_k − Σ_j a_j Δ_j‖² of every sender."""
    to_point = products @ a
    return (products.diagonal() - 2 * to_point + a @ to_point).clamp(min=0)


def pairwise(products: Float64[Tensor, "senders senders"]) -> Float64[Tensor, "senders senders"]:
    """‖Δ_i − Δ_j‖²."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)


def combination(changes: Changes, a: Float64[Tensor, " senders"]) -> Row:
    """Σ_k a_k Δ_k; a sender that is beyond all measure has no part in it."""
    on = a > 1e-100
    return {
        name: torch.tensordot(a[on].to(t), t[on.to(t.device)], dims=1)
        for name, t in changes.deltas.tensors.items()
    }


def median_of(lengths: Float64[Tensor, " senders"]) -> Tensor:
    """The middle of some lengths, of those that are none; a peer's difference from itself has no length."""
    some = lengths[lengths > 0]
    return some.median() if len(some) else lengths.new_zeros(())
