"""Stochastic gradient descent at the server, w ← w − lr · g; FedAvg and FedProx as the original FedGPL has
them.
"""

from __future__ import annotations

from fedloom.client.optimisers import Optimiser
from fedloom.client.optimisers import sgd as descend


def sgd(*, lr: float) -> Optimiser:
    """``w − lr · g``; with ``lr = client_lr`` it is `none`."""
    return descend(lr)
