"""The weighted mean, FedAvg's (McMahan et al., 2017, arXiv:1602.05629) and gossip's: Δ = Σ_k p_k Δ_k."""

from __future__ import annotations

import torch

from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.model.bank import Row


def mean() -> Aggregator:
    """The weighted mean."""
    return weighted_mean


def weighted_mean(changes: Changes) -> Row:
    """Σ_k p_k Δ_k; linear, so that a server need not keep the Δ_k and a graph is one matrix product."""
    return {
        name: torch.tensordot(changes.weights.to(t), t, dims=1) for name, t in changes.deltas.tensors.items()
    }
