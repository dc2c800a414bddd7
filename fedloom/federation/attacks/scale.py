"""A change made larger (Bagdasaryan et al., 2020, arXiv:1807.00459, without their other data).

    sent ← factor · Δ

A mean of n changes that are alike then goes (n − 1 + factor) / n of the way, as with a larger learning rate.
With a factor of 1 the attacker is honest.
"""

from __future__ import annotations

from fedloom.errors import UserError
from fedloom.federation.attacks import Attack, Sight
from fedloom.model.bank import Row


def scale(factor: float = 100.0) -> Attack:
    """Send several times what was learned.

    Args:
        factor: How many times it.

    Raises:
        UserError: It is not above 0.
    """
    check_factor("scale", factor)

    def craft(delta: Row, sight: Sight) -> Row:
        return {name: factor * t for name, t in delta.items()}

    return Attack(craft)


def check_factor(name: str, factor: float) -> None:
    """Refuse a factor that turns an attack into nothing, or into another.

    Raises:
        UserError: It is not above 0.
    """
    if not factor > 0:
        raise UserError(
            f"attack: {name}:{factor:g} is another attack or none; its number must be above 0, as in "
            f"{name}:10"
        )
