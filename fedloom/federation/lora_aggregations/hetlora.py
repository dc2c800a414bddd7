"""HetLoRA's weights (Cho et al., 2024, arXiv:2401.06432): a client counts by the norm of its product.

For every module, with p_k the clients' weights and ‖·‖ the Frobenius norm:

    q_k ← p_k ‖B_k A_k‖ / Σ_j p_j ‖B_j A_j‖
    A ← Σ_k q_k A_k,   B ← Σ_k q_k B_k

A client of a small rank, padded with zeros, or one that has learnt little has a small product, and dilutes
the others less. The paper's clients all have the same p_k. The norm is that of B A without
its scale, module by module. It comes of Gram matrices, ‖BA‖² =
Σ (BᵀB) ∘ (AAᵀ). With equal norms it is FedAvg; where all products are 0 as well. How clients of unequal ranks
are served stands in `federation.ranks`. Nobody prunes its own rank, as the paper's clients may.
"""

from __future__ import annotations

import torch

from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.lora_aggregations import check_mean, pair_by_pair
from fedloom.model.adapters.products import product_norms
from fedloom.model.bank import Row


def hetlora(*, aggregator: Aggregator) -> Aggregator:
    """Average factors by the norms of the products.

    Args:
        aggregator: What combines all that is no pair of factors; only the mean has a meaning.

    Raises:
        UserError: It is another.
    """
    check_mean("hetlora", "weighs clients by the norms of their products", aggregator)

    def of_a_pair(changes: Changes, name_a: str, name_b: str) -> Row:
        before, deltas = changes.before, changes.deltas.tensors
        A, B = (before[name].double() + deltas[name].double() for name in (name_a, name_b))
        weights = changes.weights.to(A)
        by_norm = weights * product_norms(B, A)
        q = by_norm / by_norm.sum() if by_norm.sum() > 0 else weights
        return {name: torch.tensordot(q.to(deltas[name]), deltas[name], dims=1) for name in (name_a, name_b)}

    return pair_by_pair(of_a_pair)
