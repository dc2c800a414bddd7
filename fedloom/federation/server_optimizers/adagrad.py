"""FedAdagrad (Reddi et al., 2021, arXiv:2003.00295, algorithm 2): numbers that have moved much move less.

With Δ the clients' combined change, elementwise:

    v ← v + Δ²
    w ← w + lr · Δ / (√v + τ)

v begins at τ², the smallest that the paper allows; without momentum (β₁ = 0), as the paper's experiments with
it are. Where τ is large beside all changes and lr = 2 τ, it is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedloom.client.optimisers import Optimiser
from fedloom.errors import UserError
from fedloom.federation.server_optimizers import along_change


def adagrad(tau: float = 1e-3, *, lr: float, client_lr: float) -> Optimiser:
    """Adagrad along the combined change.

    Args:
        tau: τ, how adaptive it is: small is more.
        lr: The server's learning rate.
        client_lr: See `along_change`.

    Raises:
        UserError: τ is not above 0: the step would divide by 0 where nothing has changed yet.
    """
    if not tau > 0:
        raise UserError(
            f"server_optimizer: adagrad:{tau:g} divides by 0; tau must be above 0, as in adagrad:0.001"
        )

    def move(w: Tensor, change: Tensor, moments: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        v = moments["second"] + change.square()
        return w + lr * change / (v.sqrt() + tau), {"second": v}

    return along_change(client_lr, {"second": tau**2}, move)
