"""What the server does with the clients' combined change; every file beside this one is one optimiser.

A server optimiser is made of the run's rates and is a `client.optimisers.Optimiser`: it descends along the
pseudo-gradient g = −Δ / client_lr, with Δ the combined change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedloom.client.optimisers import Optimiser, State
from fedloom.model.bank import AdapterBank

Move = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]
"""``(w, Δ, moments) -> (w, moments)``, for each number alone."""


def along_change(client_lr: float, begin: Mapping[str, float], move: Move) -> Optimiser:
    """An optimiser that is told by what it makes of the change.

    Args:
        client_lr: The pseudo-gradient is −Δ / client_lr; times it, it is the change again.
        begin: What each moment begins as.
        move: The equations.
    """

    def init(bank: AdapterBank) -> State:
        return {f"{k}.{n}": torch.full_like(w, v) for k, v in begin.items() for n, w in bank.tensors.items()}

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: Tensor
    ) -> tuple[AdapterBank, State]:
        moved, new = dict[str, Tensor](), State()
        for name, w in bank.tensors.items():
            before = {key: state[f"{key}.{name}"] for key in begin}
            after, moments = move(w, -client_lr * gradients.tensors[name], before)
            on = active.view(-1, *[1] * (w.ndim - 1))
            moved[name] = torch.where(on, after, w)
            new |= {f"{key}.{name}": torch.where(on, moments[key], t) for key, t in before.items()}
        return AdapterBank(moved), new

    return Optimiser(init, step)
