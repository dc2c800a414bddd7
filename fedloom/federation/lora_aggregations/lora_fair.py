"""LoRA-FAIR (Bian et al., 2025, arXiv:2411.14961): factors are averaged, and B takes up what that loses.

    Ā ← Σ_k p_k A_k,   B̄ ← Σ_k p_k B_k
    R ← Σ_k p_k B_k A_k − B̄ Ā                what the mean of the factors misses of that of the products
    B ← B̄ + R Āᵀ (Ā Āᵀ + λ I)⁻¹,   A ← Ā

The correction is the ΔB that minimises ‖R − ΔB Ā‖² + λ ‖ΔB‖², squares of Frobenius norms: λ holds B near the
mean. The paper leaves the measure of likeness open, and descends along a cosine; with this one the minimum is
in closed form, and the same on all machines. R is never built: R Āᵀ = Σ_k p_k B_k (A_k Āᵀ) − B̄ (Ā Āᵀ).

For λ → ∞ it is the mean of factors, FedAvg; so it is for one client, for equal ones, and for one A for all,
where R = 0. Where clients have unequal ranks, B_k counts at the scale of its rank.
"""

from __future__ import annotations

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.lora_aggregations import check_mean, pair_by_pair, product_weights
from fedloom.model.bank import Row


def lora_fair(penalty: float = 0.01, *, aggregator: Aggregator) -> Aggregator:
    """Average factors, and correct B.

    Args:
        penalty: λ; not of the size of the paper's, whose objective is another.
        aggregator: What combines all that is no pair of factors; only the mean has a meaning.

    Raises:
        UserError: It is another, or λ is not above 0: Ā Āᵀ alone may have no inverse.
    """
    check_mean("lora_fair", "corrects the mean of the products", aggregator)
    if not penalty > 0:
        raise UserError(
            f"lora_aggregation: lora_fair:{penalty:g} may divide by 0; the penalty must be above 0, as in "
            "lora_fair:0.01"
        )

    def of_a_pair(changes: Changes, name_a: str, name_b: str) -> Row:
        before, deltas = changes.before, changes.deltas.tensors
        # In float64, where R is a difference of sums that are nearly equal.
        A = before[name_a].double() + deltas[name_a].double()  # [senders, rank, d_in]
        B = before[name_b].double() + deltas[name_b].double()  # [senders, d_out, rank]
        by_product = product_weights(changes).to(A)
        mean_a = torch.tensordot(changes.weights.to(A), A, dims=1)
        mean_b = torch.tensordot(by_product, B, dims=1)
        square = mean_a @ mean_a.T  # [rank, rank]
        missed = torch.einsum("k,kor,krs->os", by_product, B, A @ mean_a.T) - mean_b @ square
        regularised = square + penalty * torch.eye(len(square), dtype=A.dtype, device=A.device)
        new_b = mean_b + torch.linalg.solve(regularised, missed, left=False)
        new_a_change = torch.tensordot(changes.weights.to(A), deltas[name_a].double(), dims=1)
        return {
            name_a: new_a_change.to(before[name_a].dtype),
            name_b: (new_b - before[name_b].double()).to(before[name_b].dtype),
        }

    return pair_by_pair(of_a_pair)
