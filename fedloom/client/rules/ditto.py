"""Ditto (Li et al., 2021, arXiv:2012.04221, algorithm 1): a personal model beside the shared one.

In every round that client k takes part in, with w the server's adapter and v_k its own, which begins
where everybody does:

    w_k ← local training from w                              is sent, and averaged as ever
    K times:   v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w))       stays with the client

Both take the same K steps over the same batches. With λ = 0 the personal model is local training; the larger
λ, the nearer it stays to the server's. With SGD η λ must be well below 2. Nothing more is sent, and a client
computes twice as much.
"""

from __future__ import annotations

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank, Row


def ditto(strength: float = 0.1) -> ClientRule:
    """Train a personal model beside the shared one.

    Args:
        strength: λ.

    Raises:
        UserError: λ is negative: the personal model would be driven away from the server's.
    """
    if strength < 0:
        raise UserError(f"client_rule: ditto:{strength:g} is negative; its strength must be at least 0")

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        return gradients.map(lambda g, v, w: g + strength * (v - w), bank, AdapterBank(received))

    return none()._replace(own_model=none()._replace(correct=correct))
