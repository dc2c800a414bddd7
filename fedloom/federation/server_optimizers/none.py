"""The server takes the combined change as it is, w ← w + Δ; with the mean, FedAvg's averaging of models."""

from __future__ import annotations

from fedloom.client.optimisers import Optimiser
from fedloom.client.optimisers import sgd as descend


def none(*, client_lr: float) -> Optimiser:
    """``w − client_lr · g``, which is ``w + Δ``."""
    return descend(client_lr)
