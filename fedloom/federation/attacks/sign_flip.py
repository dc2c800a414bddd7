"""The opposite direction (Li et al., 2019, arXiv:1811.03761).

    sent ← −factor · Δ

of the attacker's own change Δ. A mean of n changes that are alike then goes (n − 1 − factor) / n of the way:
with a factor of 1 it is slowed down, and it goes back where the factor is above n − 1.
"""

from __future__ import annotations

from fedloom.federation.attacks import Attack, Sight
from fedloom.federation.attacks.scale import check_factor
from fedloom.model.bank import Row


def sign_flip(factor: float = 10.0) -> Attack:
    """Send the opposite of what was learned.

    Args:
        factor: How many times it.

    Raises:
        UserError: It is not above 0.
    """
    check_factor("sign_flip", factor)

    def craft(delta: Row, sight: Sight) -> Row:
        return {name: -factor * t for name, t in delta.items()}

    return Attack(craft)
