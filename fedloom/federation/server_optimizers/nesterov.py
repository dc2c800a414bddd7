"""Nesterov momentum at the server, the outer step of DiLoCo (Douillard et al., 2023, arXiv:2311.08105).

With Δ the clients' combined change:

    v ← β v + Δ
    w ← w + lr · (Δ + β v)

which is torch's SGD with ``nesterov=True`` along −Δ. v begins at 0. With β = 0 and lr = 1 it is FedAvg. The
paper takes β = 0.9 and lr = 0.7; its workers descend by AdamW (`--client_optimizer adamw`), whose moments
they keep from round to round.
"""

from __future__ import annotations

import torch

from fedloom.client.optimisers import Optimiser, State
from fedloom.federation.server_optimizers.momentum import at_rest, check_beta
from fedloom.model.bank import AdapterBank


def nesterov(beta: float = 0.9, *, lr: float, client_lr: float) -> Optimiser:
    """Nesterov momentum along the combined change.

    Args:
        beta: β, how much of the speed is kept.
        lr: The server's learning rate.
        client_lr: The pseudo-gradient is −Δ / client_lr; times it, it is the change again.

    Raises:
        UserError: β is not at least 0 and below 1.
    """
    check_beta("nesterov", beta)

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: torch.Tensor
    ) -> tuple[AdapterBank, State]:
        moved, new = {}, {}
        for name, w in bank.tensors.items():
            on, v = active.view(-1, *[1] * (w.ndim - 1)), state[f"speed.{name}"]
            change = -client_lr * gradients.tensors[name]
            v = torch.where(on, beta * v + change, v)
            moved[name] = torch.where(on, w + lr * (change + beta * v), w)
            new[f"speed.{name}"] = v
        return AdapterBank(moved), new

    return Optimiser(at_rest, step)
