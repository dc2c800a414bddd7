"""FedAdagrad (Reddi et al., 2021, arXiv:2003.00295, algorithm 2): numbers that have moved much move less.

With Δ the clients' combined change, elementwise:

    v ← v + Δ²
    w ← w + lr · Δ / (√v + τ)

v begins at τ², the smallest that the paper allows; without momentum (β₁ = 0), as the paper's experiments with
it are. Where τ is large beside all changes and lr = 2 τ, it is FedAvg.
"""

from __future__ import annotations

import torch

from fedloom.client.optimisers import Optimiser, State
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank


def adagrad(tau: float = 1e-3, *, lr: float, client_lr: float) -> Optimiser:
    """Adagrad along the combined change.

    Args:
        tau: τ, how adaptive it is: small is more.
        lr: The server's learning rate.
        client_lr: The pseudo-gradient is −Δ / client_lr; times it, it is the change again.

    Raises:
        UserError: τ is not above 0: the step would divide by 0 where nothing has changed yet.
    """
    if not tau > 0:
        raise UserError(
            f"server_optimizer: adagrad:{tau:g} divides by 0; tau must be above 0, as in adagrad:0.001"
        )

    def init(bank: AdapterBank) -> State:
        return {f"second.{name}": torch.full_like(w, tau**2) for name, w in bank.tensors.items()}

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: torch.Tensor
    ) -> tuple[AdapterBank, State]:
        moved, new = {}, {}
        for name, w in bank.tensors.items():
            on, v = active.view(-1, *[1] * (w.ndim - 1)), state[f"second.{name}"]
            change = -client_lr * gradients.tensors[name]
            v = torch.where(on, v + change.square(), v)
            moved[name] = torch.where(on, w + lr * change / (v.sqrt() + tau), w)
            new[f"second.{name}"] = v
        return AdapterBank(moved), new

    return Optimiser(init, step)
