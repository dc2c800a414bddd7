"""FedEx-LoRA (Singhal et al., 2025, arXiv:2410.09432): factors are averaged; what that loses is folded.

    Ā ← Σ_k p_k A_k,   B̄ ← Σ_k p_k B_k
    F ← F + Σ_k p_k B_k A_k − B̄ Ā

so that everybody's base and adapter together are the mean of the clients' exactly, with weights p_k that sum
to 1 where the paper has 1 / K. The residual is zero for one client, for equal clients, and where all have one
A. It is a covariance, which has no cancellation in it, of rank (K − 1) r at most; K r rows and columns are
sent to everybody. With a cap on its rank F is the nearest of that rank; with 0 this is FedAvg of the factors:

    Σ_k p_k B_k A_k − B̄ Ā = Σ_k p_k (B_k − B̄) (A_k − Ā) = [p_1 (B_1 − B̄), …] · [A_1 − Ā; …]

On a graph (which the paper has not) there is no base that all share. Each peer has a residual R_i = P_i Q_i
of a capped rank C, which it sends beside its factors, and with its neighbours and itself

    Ā_i ← Σ_j W_ij A_j,   B̄_i ← Σ_j W_ij B_j
    R_i ← truncate_C(Σ_j W_ij (R_j + B_j A_j) − B̄_i Ā_i)

so that where C leaves nothing out everybody has Σ_j W_ij of what neighbours compute, exactly, and the mean
over peers stays what it was. On the complete graph all have what the server above gives with equal weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.federation.aggregators import Aggregator, Changes, Folding
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.lora_aggregations import check_mean
from fedloom.model.adapters.products import DOWN, UP, truncated_product
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
            module = name_a.removesuffix(".lora_A.weight")
            change[module + UP], change[module + DOWN] = _residual(changes, change, name_a, name_b)
        return change

    by_server = weighted_mean if residual_rank == 0 else combine
    return Folding(by_server, rank=residual_rank, among_peers=_each_with_its_own)


def _residual(changes: Changes, mean: Row, name_a: str, name_b: str) -> tuple[Tensor, Tensor]:
    """Factors ``[d_out, many]`` and ``[many, d_in]`` of what the mean of factors loses."""
    A = changes.deltas.tensors[name_a] - mean[name_a]  # [senders, rank, d_in], from their mean
    B = changes.deltas.tensors[name_b] - mean[name_b]  # [senders, d_out, rank]
    return _weighted(B, changes.weights), A.flatten(0, 1)


def _weighted(up: Tensor, weights: Tensor) -> Tensor:
    """``[senders, d_out, rank]`` by each sender's weight and side by side, ``[d_out, senders · rank]``."""
    return (up * weights.to(up)[:, None, None]).movedim(0, 1).flatten(1)


def _each_with_its_own(changes: Changes) -> Row:
    """A peer's factors and residual from its neighbours' and its own; see the module."""
    before, deltas, change = changes.before, changes.deltas.tensors, weighted_mean(changes)
    for name_a, name_b in changes.pairs:
        up, down = (name_a.removesuffix(".lora_A.weight") + factor for factor in (UP, DOWN))
        P = (before[up] + deltas[up]).double()  # [senders, d_out, C]
        Q = (before[down] + deltas[down]).double()  # [senders, C, d_in]
        left, right = (t.double() for t in _residual(changes, change, name_a, name_b))
        left, right = torch.cat([_weighted(P, changes.weights), left], 1), torch.cat([Q.flatten(0, 1), right])
        left, right = truncated_product(left, right, len(before[down]))
        # Half of each direction's size on either side, so that one without any is zero in both; and of its
        # two signs the same on all machines, which SVD leaves open.
        size = left.norm(dim=0).sqrt()
        size = size * torch.where(right.gather(1, right.abs().argmax(1, keepdim=True))[:, 0] < 0, -1.0, 1.0)
        left = torch.where(size == 0, 0.0, left / size)
        change |= {
            up: left.to(before[up]) - before[up],
            down: (size[:, None] * right).to(before[down]) - before[down],
        }
    return change
