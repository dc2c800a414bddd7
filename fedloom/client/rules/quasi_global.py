"""Quasi-global momentum (Lin et al., 2021, arXiv:2102.04761, algorithm 1, QG-DSGDm), for peers on a graph.

A momentum of a peer's own gradients carries it to its own minimum; the way that its model goes from round to
round, mixing included, is nearer to the way that all go. With x the peer's model at the start of a round, η
the learning rate, K local steps:

    K times:   y ← y − η (g(y) + μ m)        from y = x
    x⁺ ← Σ_j W_ij y_j                        mixing
    m ← μ m + (1 − μ) (x − x⁺) / (K η)       known at the start of the next round

m begins at 0. With μ = 0 it is plain gossip. The paper takes one step in a round, K = 1. Nothing is sent for
it. The way is measured by the steps of SGD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank, Row

_MOMENTUM, _BEGAN, _STEPS = "momentum.", "began.", "steps."


def quasi_global(
    mu: float = 0.9, *, lr: float, client_optimizer: str, loraplus_lr_ratio: float = 1.0
) -> ClientRule:
    """Follow the way of the mixed models.

    Args:
        mu: μ.
        lr: η, the peers' learning rate.
        client_optimizer: How peers descend.
        loraplus_lr_ratio: How much faster B learns.

    Raises:
        UserError: μ is not at least 0 and below 1, or peers do not descend by SGD.
    """
    check_descends_by_sgd("quasi_global", client_optimizer, loraplus_lr_ratio)
    if not 0 <= mu < 1:
        raise UserError(
            f"client_rule: quasi_global:{mu:g} is no momentum; mu must be at least 0 and "
            "below 1, as in quasi_global:0.9"
        )

    def memory_of(adapter: Row) -> Row:
        row = {_MOMENTUM + name: torch.zeros_like(t) for name, t in adapter.items()}
        row |= {_BEGAN + name: t.clone() for name, t in adapter.items()}
        return row | {_STEPS + name: t.new_ones(()) for name, t in adapter.items()}

    def momentum(memory: State, start: AdapterBank, name: str) -> Tensor:
        x = start.tensors[name]
        steps = memory[_STEPS + name].view(-1, *[1] * (x.ndim - 1))
        return mu * memory[_MOMENTUM + name] + (1 - mu) * (memory[_BEGAN + name] - x) / (steps * lr)

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        return AdapterBank(
            {
                name: g + mu * momentum(memory, start, name) if _BEGAN + name in memory else g
                for name, g in gradients.tensors.items()
            }
        )

    def finish(
        start: AdapterBank, bank: AdapterBank, steps: Tensor, memory: State, received: Row
    ) -> tuple[State, State]:
        after = dict(memory)
        for name, x in start.tensors.items():
            if _BEGAN + name in memory:
                after[_MOMENTUM + name] = momentum(memory, start, name)
                after[_BEGAN + name] = x
                after[_STEPS + name] = steps.to(x)
        return after, {}

    return none()._replace(memory=memory_of, correct=correct, finish=finish)


def check_descends_by_sgd(name: str, client_optimizer: str, loraplus_lr_ratio: float) -> None:
    """Refuse another optimiser for a rule that reads gradients off the steps.

    Raises:
        UserError: It is another, or has more than one learning rate.
    """
    if loraplus_lr_ratio != 1:
        raise UserError(
            f"client_rule: {name} reads gradients off steps of one learning rate, and loraplus_lr_ratio is "
            f"{loraplus_lr_ratio:g}; leave it out, or choose another rule"
        )
    if client_optimizer != "sgd":
        raise UserError(
            f"client_rule: {name} reads gradients off the steps of SGD, and client_optimizer is "
            f"{client_optimizer}; choose --client_optimizer sgd, or another rule"
        )
