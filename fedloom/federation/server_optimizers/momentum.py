"""FedAvgM (Hsu et al., 2019, arXiv:1909.06335): the server keeps going where rounds before went.

With Δ the clients' combined change:

    v ← β v + Δ
    w ← w + lr · v

v begins at 0. With β = 0 and lr = 1 it is FedAvg. A change that comes back every round moves the server by
1 / (1 − β) times as much in the end, which lr has to make up for. It is made for `--lr` near 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedloom.client.optimisers import Optimiser
from fedloom.errors import UserError
from fedloom.federation.server_optimizers import along_change


def momentum(beta: float = 0.9, *, lr: float, client_lr: float) -> Optimiser:
    """Heavy-ball momentum along the combined change.

    Args:
        beta: β, how much of the speed is kept.
        lr: The server's learning rate.
        client_lr: See `along_change`.

    Raises:
        UserError: β is not at least 0 and below 1: the speed would grow for ever.
    """
    check_beta("momentum", beta)

    def move(w: Tensor, change: Tensor, moments: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        v = beta * moments["speed"] + change
        return w + lr * v, {"speed": v}

    return along_change(client_lr, {"speed": 0.0}, move)


def check_beta(name: str, beta: float) -> None:
    """Refuse a momentum that is none.

    Raises:
        UserError: It is not at least 0 and below 1.
    """
    if not 0 <= beta < 1:
        raise UserError(
            f"server_optimizer: {name}:{beta:g} is no momentum; beta must be at least 0 and "
            f"below 1, as in {name}:0.9"
        )
