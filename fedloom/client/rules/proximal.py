"""FedProx's proximal term (Li et al., 2020, arXiv:1812.06127): clients are held near where they began.

    min_w  F_k(w) + μ / 2 ‖w − w_start‖²        so that  g ← g + μ (w − w_start)

With μ = 0, or a single local step, it is FedAvg.
"""

from __future__ import annotations

from fedloom.client.optimisers import State
from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none
from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank, Row


def proximal(mu: float | None = None, *, prox_mu: float = 0.01) -> ClientRule:
    """Add ``μ (w − w_start)`` to each client's gradient.

    Args:
        mu: μ; None takes ``prox_mu``.
        prox_mu: The option of this name.

    Raises:
        UserError: μ is negative: clients would be driven away from where they began.
    """
    weight = prox_mu if mu is None else mu
    if weight < 0:
        raise UserError(f"client_rule: proximal:{weight:g} is negative; mu must be at least 0")

    def correct(
        gradients: AdapterBank, bank: AdapterBank, start: AdapterBank, memory: State, received: Row
    ) -> AdapterBank:
        if weight == 0:
            return gradients
        return gradients.map(lambda g, w, w0: g + weight * (w - w0), bank, start)

    return none()._replace(correct=correct)
