"""Nesterov momentum at the server, the outer step of DiLoCo (Douillard et al., 2023, arXiv:2311.08105).

With Δ the clients' combined change:

    v ← β v + Δ
    w ← w + lr · (Δ + β v)

which is torch's SGD with ``nesterov=True`` along −Δ. v begins at 0. With β = 0 and lr = 1 it is FedAvg. The
paper takes β = 0.9 and lr = 0.7; its workers descend by AdamW (`--client_optimizer adamw`), whose moments
they keep from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedloom.client.optimisers import Optimiser
from fedloom.federation.server_optimizers import along_change
from fedloom.federation.server_optimizers.momentum import check_beta


def nesterov(beta: float = 0.9, *, lr: float, client_lr: float) -> Optimiser:
    """Nesterov momentum along the combined change.

    Args:
        beta: β, how much of the speed is kept.
        lr: The server's learning rate.
        client_lr: See `along_change`.

    Raises:
        UserError: β is not at least 0 and below 1.
    """
    check_beta("nesterov", beta)

    def move(w: Tensor, change: Tensor, moments: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        v = beta * moments["speed"] + change
        return w + lr * (change + beta * v), {"speed": v}

    return along_change(client_lr, {"speed": 0.0}, move)
