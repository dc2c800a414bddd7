"""SGD and Adam over a stack of clients: every client's parameters, moments and step count are its own.

An optimiser is a pair of functions, as in optax: `init` makes its state, `step` maps (bank, gradients,
state, active) to (bank, state). States are flat ``{name: tensor[clients, ...]}``, so that they save,
stack and slice as banks do. Every parameter counts its own steps, so that some may rest while others move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from fedloom.model.bank import AdapterBank, Row

State = dict[str, Tensor]


class Optimiser(NamedTuple):
    """What a client, or the server with a bank of one row, uses to descend.

    Attributes:
        init: ``bank -> state``.
        step: ``(bank, gradients, state, active) -> (bank, state)``. Where ``active[k]`` is false, client
            k keeps its parameters, moments and step count.
    """

    init: Callable[[AdapterBank], State]
    step: Callable[[AdapterBank, AdapterBank, State, Tensor], tuple[AdapterBank, State]]


def sgd(lr: float) -> Optimiser:
    """Plain stochastic gradient descent, ``w - lr * g``; it has no state."""

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: Bool[Tensor, " clients"]
    ) -> tuple[AdapterBank, State]:
        return bank.map(lambda w, g: torch.where(_like(active, w), w - lr * g, w), gradients), state

    return Optimiser(lambda bank: {}, step)


def adam(
    lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimiser:
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980), with decoupled weight decay where it is asked for.

    With ``weight_decay`` it is AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101); 0 is Adam.
    """
    beta1, beta2 = betas

    def init(bank: AdapterBank) -> State:
        state = {}
        for name, w in bank.tensors.items():
            state[f"steps.{name}"] = torch.zeros(bank.clients, dtype=torch.long, device=bank.device)
            state[f"first.{name}"] = torch.zeros_like(w)
            state[f"second.{name}"] = torch.zeros_like(w)
        return state

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: Bool[Tensor, " clients"]
    ) -> tuple[AdapterBank, State]:
        new: State = {}
        moved = {}
        for name, w in bank.tensors.items():
            g, on = gradients.tensors[name], _like(active, w)
            m, v = state[f"first.{name}"], state[f"second.{name}"]
            m = torch.where(on, m + (1 - beta1) * (g - m), m)
            v = torch.where(on, v + (1 - beta2) * (g * g - v), v)
            steps = state[f"steps.{name}"] + active.long()
            # A client that has not stepped yet is not active: any correction will do, short of 0 / 0.
            taken = steps.clamp(min=1).double()
            c1, c2 = (_like((1 - beta**taken).to(w.dtype), w) for beta in betas)
            update = (m / c1) / ((v / c2).sqrt() + eps) + weight_decay * w
            moved[name] = torch.where(on, w - lr * update, w)
            new[f"first.{name}"], new[f"second.{name}"], new[f"steps.{name}"] = m, v, steps
        return AdapterBank(moved), new

    return Optimiser(init, step)


def loraplus(make: Callable[[float], Optimiser], lr: float, ratio: float) -> Optimiser:
    """LoRA+ (Hayou et al., 2024, arXiv:2402.12354): LoRA's B learns ``ratio`` times as fast as all else.

    B begins at zero and A does not, so that with one rate for both the steps of wide layers come to little. A
    ratio of 1 is ``make(lr)``.

    Args:
        make: The optimiser of a learning rate.
        lr: Of all but B.
        ratio: Of B's learning rate to it.
    """
    slow, fast = make(lr), make(lr * ratio)

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: Bool[Tensor, " clients"]
    ) -> tuple[AdapterBank, State]:
        moved, new = dict(bank.tensors), dict(state)
        parts = bank.split([name for name in moved if ".lora_B." in name])
        for part, optimiser in zip(parts, (fast, slow), strict=True):
            if part.tensors:
                before = {key: t for key, t in state.items() if key.partition(".")[2] in part.tensors}
                after, its_state = optimiser.step(part, gradients, before, active)
                moved, new = moved | after.tensors, new | its_state
        return AdapterBank(moved), new

    return Optimiser(slow.init, step)


def step_some(optimiser: Optimiser, row: Row, gradient: Row, state: State) -> tuple[Row, State]:
    """One step of a single row, of the parameters that have a gradient; the others rest.

    A parameter that rests keeps its value, its moments and its step count.

    Args:
        optimiser: Which step.
        row: ``{name: tensor[*shape]}``.
        gradient: The same for some of the names.
        state: The optimiser's, of a bank of one row.
    """
    moving = AdapterBank.repeat({name: row[name] for name in gradient}, 1)
    its_state = {key: t for key, t in state.items() if key.partition(".")[2] in gradient}
    active = torch.ones(1, dtype=torch.bool, device=next(iter(row.values())).device)
    moved, new = optimiser.step(moving, AdapterBank.repeat(gradient, 1), its_state, active)
    return row | moved.row(0), state | new


def clip(gradients: AdapterBank, max_norm: float) -> AdapterBank:
    """Scale each client's gradient down to ``max_norm`` where its norm is larger; 0 leaves all as is."""
    if max_norm == 0.0:
        return gradients
    factor = (max_norm / (gradients.norms() + 1e-6)).clamp(max=1.0)
    return scaled(gradients, factor)


def scaled(gradients: AdapterBank, factors: Shaped[Tensor, " clients"]) -> AdapterBank:
    """Each client's gradient times its own factor."""
    return gradients.map(lambda g: g * _like(factors.to(g), g))


def _like(per_client: Float[Tensor, " clients"] | Bool[Tensor, " clients"], t: Tensor) -> Tensor:
    """``[clients] -> [clients, 1, ...]``, to broadcast against ``t``."""
    return per_client.view(-1, *[1] * (t.ndim - 1))
