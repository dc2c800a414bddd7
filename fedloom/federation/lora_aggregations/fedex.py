"""FedEx-LoRA (Singhal et al., 2025, arXiv:2410.09432): factors are averaged; what that loses is folded.

    Ā ← Σ_k p_k A_k,   B̄ ← Σ_k p_k B_k
    F ← F + Σ_k p_k B_k A_k − B̄ Ā

so that everybody's base and adapter together are the mean of the clients' exactly, with weights p_k that sum
to 1 where the paper has 1 / K. The residual is zero for one client, for equal clients, and where all have one
A. It is a covariance, which has no cancellation in it, of rank (K − 1) r at most; K r rows and columns are
sent to everybody. With a cap on its rank F is the nearest of that rank; with 0 this is FedAvg of the factors:

    Σ_k p_k B_k A_k − B̄ Ā = Σ_k p_k (B_k − B̄) (A_k − Ā) = [p_1 (B_1 − B̄), …] · [A_1 − Ā; …]
"""

from __future__ import annotations

from fedloom.federation.aggregators import Aggregator, Changes, Folding
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.lora_aggregations import check_mean
from fedloom.model.adapters.folding import DOWN, UP
from fedloom.model.bank import Row


def fedex(*, aggregator: Aggregator, residual_rank: int | None = None) -> Aggregator:
    """Average factors, and fold the residual into the base.

    Args:
        aggregator: What combines the factors; only the mean has a meaning.
        residual_rank: The most rank that the base's change may have; None: any.

    Raises:
        UserError: It is another.
    """
    check_mean("fedex", "averages factors and products", aggregator)

    def combine(changes: Changes) -> Row:
        change = weighted_mean(changes)
        for name_a, name_b in changes.pairs:
            A = changes.deltas.tensors[name_a] - change[name_a]  # [senders, rank, d_in], from their mean
            B = changes.deltas.tensors[name_b] - change[name_b]  # [senders, d_out, rank]
            module = name_a.removesuffix(".lora_A.weight")
            change[module + UP] = (B * changes.weights.to(B)[:, None, None]).movedim(0, 1).flatten(1)
            change[module + DOWN] = A.flatten(0, 1)
        return change

    return Folding(weighted_mean if residual_rank == 0 else combine, rank=residual_rank)
