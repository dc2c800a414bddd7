"""Fed-SB (Singhal et al., 2025, arXiv:2502.15436): an r × r matrix trains between fixed factors.

    W = W_0 + s B R A;   client k trains R_k from R;   R ← Σ_k p_k R_k

B and A are one for all, so that averaging R averages the products exactly, and r² numbers per module are
sent, whatever the width of the layer. B and A have the singular vectors of a first update, R begins as its
singular values. The paper takes a gradient of the whole weights, on some examples in one place (LoRA-SB,
arXiv:2411.19557). Here it is the update of two opening rounds, a step of randomised SVD: no whole gradient
is ever made, and data stay with their clients. With G that gradient:

    round 0:     B_k trains beside A as it was drawn;    B ← Q,  A ← T A              Q T = Σ_k p_k B_k, by QR
    round 1:     A_k trains beside Q, along Qᵀ G;        B ← U,  A ← Vᵀ,  R ← S       U S Vᵀ = B A, by SVD
    from 2 on:   R_k trains

The product has rank r, so that other factors change nothing. Where a layer is narrower than r, what is beyond
is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.federation.aggregators import Aggregator, Refactoring
from fedloom.model.adapters.products import lora_pairs, svd_of_product
from fedloom.model.adapters.square import R, with_square
from fedloom.model.bank import Row

OPENING = 2
"""Rounds before R trains."""


def fedsb(*, aggregator: Aggregator) -> Refactoring:
    """Combine what trains as the aggregator does, and fix B and A after the opening rounds.

    Args:
        aggregator: What combines B, A and R; any has a meaning.
    """
    return Refactoring(aggregator, _refactor, rounds=OPENING, initial=with_square)


def _refactor(adapter: Row, round_: int) -> Row:
    """The same products in other factors: B's columns orthonormal, and in the end A's rows as well."""
    found = dict(adapter)
    for name_a, name_b in lora_pairs(adapter.keys()):
        A, B = adapter[name_a].double(), adapter[name_b].double()
        if round_ < OPENING - 1:
            Q, T = torch.linalg.qr(B)
            new = {name_a: T @ A, name_b: Q}
        else:
            U, S, Vh = svd_of_product(B, A)
            new = {name_a: Vh, name_b: U, name_a.removesuffix(".lora_A.weight") + R: S.diag()}
        found |= {name: _padded(t, adapter[name]) for name, t in new.items()}
    return found


def _padded(t: Tensor, like: Tensor) -> Tensor:
    """A matrix with zeros up to the shape of another, and in its dtype."""
    found = torch.zeros_like(like)
    found[: t.shape[0], : t.shape[1]] = t.to(like)
    return found
