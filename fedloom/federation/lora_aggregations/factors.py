"""A and B are combined each for itself, as FedIT does (Zhang et al., 2024, arXiv:2305.05644)."""

from __future__ import annotations

from fedloom.federation.aggregators import Aggregator


def factors(*, aggregator: Aggregator) -> Aggregator:
    """The aggregator, as it is."""
    return aggregator
