"""FedAvgM (Hsu et al., 2019, arXiv:1909.06335): the server keeps going where rounds before went.

With Δ the clients' combined change:

    v ← β v + Δ
    w ← w + lr · v

v begins at 0. With β = 0 and lr = 1 it is FedAvg. A change that comes back every round moves the server by
1 / (1 − β) times as much in the end, which lr has to make up for. It is made for `--lr` near 1.
"""

from __future__ import annotations

import torch

from fedloom.client.optimisers import Optimiser, State
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank


def momentum(beta: float = 0.9, *, lr: float, client_lr: float) -> Optimiser:
    """Heavy-ball momentum along the combined change.

    Args:
        beta: β, how much of the speed is kept.
        lr: The server's learning rate.
        client_lr: The pseudo-gradient is −Δ / client_lr; times it, it is the change again.

    Raises:
        UserError: β is not at least 0 and below 1: the speed would grow for ever.
    """
    check_beta("momentum", beta)

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: torch.Tensor
    ) -> tuple[AdapterBank, State]:
        moved, new = {}, {}
        for name, w in bank.tensors.items():
            on, v = active.view(-1, *[1] * (w.ndim - 1)), state[f"speed.{name}"]
            v = torch.where(on, beta * v - client_lr * gradients.tensors[name], v)
            moved[name], new[f"speed.{name}"] = torch.where(on, w + lr * v, w), v
        return AdapterBank(moved), new

    return Optimiser(at_rest, step)


def at_rest(bank: AdapterBank) -> State:
    """The state before the first step: no speed."""
    return {f"speed.{name}": torch.zeros_like(w) for name, w in bank.tensors.items()}


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
