"""FedYogi (Reddi et al., 2021, arXiv:2003.00295, algorithm 2): the second moment moves by sign, not by ratio.

With Δ the clients' combined change, elementwise:

    m ← β₁ m + (1 − β₁) Δ
    v ← v − (1 − β₂) Δ² sign(v − Δ²)
    w ← w + lr · m / (√v + τ)

m begins at 0, v at τ², the smallest that the paper allows; there is no bias correction. Where Adam forgets a
large v as fast as it learnt it, Yogi's v changes by at most (1 − β₂) Δ².
"""

from __future__ import annotations

import torch

from fedloom.client.optimisers import Optimiser, State
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank

BETA1, BETA2 = 0.9, 0.99
"""The paper's, section 4."""


def yogi(tau: float = 1e-3, *, lr: float, client_lr: float) -> Optimiser:
    """Yogi along the combined change.

    Args:
        tau: τ, how adaptive it is: small is more.
        lr: The server's learning rate.
        client_lr: The pseudo-gradient is −Δ / client_lr; times it, it is the change again.

    Raises:
        UserError: τ is not above 0: the step would divide by 0 where nothing has changed yet.
    """
    if not tau > 0:
        raise UserError(f"server_optimizer: yogi:{tau:g} divides by 0; tau must be above 0, as in yogi:0.001")

    def init(bank: AdapterBank) -> State:
        state = {f"first.{name}": torch.zeros_like(w) for name, w in bank.tensors.items()}
        return state | {f"second.{name}": torch.full_like(w, tau**2) for name, w in bank.tensors.items()}

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: torch.Tensor
    ) -> tuple[AdapterBank, State]:
        moved, new = {}, {}
        for name, w in bank.tensors.items():
            change = -client_lr * gradients.tensors[name]
            m, v, square = state[f"first.{name}"], state[f"second.{name}"], change.square()
            on = active.view(-1, *[1] * (w.ndim - 1))
            m = torch.where(on, BETA1 * m + (1 - BETA1) * change, m)
            v = torch.where(on, v - (1 - BETA2) * square * torch.sign(v - square), v)
            moved[name] = torch.where(on, w + lr * m / (v.sqrt() + tau), w)
            new[f"first.{name}"], new[f"second.{name}"] = m, v
        return AdapterBank(moved), new

    return Optimiser(init, step)
