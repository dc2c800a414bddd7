"""FedSVD (Lee et al., 2025, arXiv:2505.12805): B trains and is averaged, A follows it by SVD between rounds.

    client k:   B_k ← local training from B, with A as it is
    server:     B ← Σ_k p_k B_k
                U S Vᵀ ← SVD(B A);   A ← Vᵀ,   B ← U S

While A is one for all, averaging B averages the products exactly; the SVD leaves the product as it is, and
lets A turn to the directions that the clients have found. After the first round A's rows are orthonormal,
A Aᵀ = I, which bounds B's gradients. Where B has fewer directions than its rank the rest of A spans what A
spanned before, so that none is lost.

SVD leaves the signs open: of the two of each direction that one is taken which is nearer to A before.
Whatever knows B one number at a time (moments, control variates, what a codec lost) is of no use after it.
From the second round on clients are sent A as well as B. Never turned, it is FFA-LoRA.
"""

from __future__ import annotations

import torch

from fedloom.federation.aggregators import Aggregator, Refactoring
from fedloom.model.adapters.products import aligned, lora_pairs, truncated_sum
from fedloom.model.bank import Row


def fedsvd(*, aggregator: Aggregator) -> Refactoring:
    """Combine B as the aggregator does, and factor the products anew.

    Args:
        aggregator: What combines B; any has a meaning.
    """
    return Refactoring(aggregator, by_svd)


def by_svd(adapter: Row, round_: int = 0) -> Row:
    """An adapter of the same products, in the factors of their SVD: A A^T = I."""
    turned = dict(adapter)
    for name_a, name_b in lora_pairs(adapter.keys()):
        A, B = adapter[name_a], adapter[name_b]
        new_a, new_b = truncated_sum(A[None], B[None], torch.ones(1), rank=len(A))
        turned[name_a], turned[name_b] = aligned(new_a, new_b, A, keep_order=True)
    return turned
