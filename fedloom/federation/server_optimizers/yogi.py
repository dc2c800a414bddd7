"""FedYogi (Reddi et al., 2021, arXiv:2003.00295, algorithm 2): the second moment moves by sign, not by ratio.

With Δ the clients' combined change, elementwise:

    m ← β₁ m + (1 − β₁) Δ
    v ← v − (1 − β₂) Δ² sign(v − Δ²)
    w ← w + lr · m / (√v + τ)

m begins at 0, v at τ², the smallest that the paper allows; there is no bias correction. Where Adam forgets a
large v as fast as it learnt it, Yogi's v changes by at most (1 − β₂) Δ².
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedloom.client.optimisers import Optimiser
from fedloom.errors import UserError
from fedloom.federation.server_optimizers import along_change

BETA1, BETA2 = 0.9, 0.99
"""The paper's, section 4."""


def yogi(tau: float = 1e-3, *, lr: float, client_lr: float) -> Optimiser:
    """Yogi along the combined change.

    Args:
        tau: τ, how adaptive it is: small is more.
        lr: The server's learning rate.
        client_lr: See `along_change`.

    Raises:
        UserError: τ is not above 0: the step would divide by 0 where nothing has changed yet.
    """
    if not tau > 0:
        raise UserError(f"server_optimizer: yogi:{tau:g} divides by 0; tau must be above 0, as in yogi:0.001")

    def move(w: Tensor, change: Tensor, moments: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        v, square = moments["second"], change.square()
        m = BETA1 * moments["first"] + (1 - BETA1) * change
        v = v - (1 - BETA2) * square * torch.sign(v - square)
        return w + lr * m / (v.sqrt() + tau), {"first": m, "second": v}

    return along_change(client_lr, {"first": 0.0, "second": tau**2}, move)
