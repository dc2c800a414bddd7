"""Inner product manipulation (Xie et al., 2020, arXiv:1903.03936): against what the honest would do.

    sent ← −ε · mean of the honest Δ_k

With a small ε the attackers' changes are no further from the honest ones than these are from each other, and
a robust aggregator that takes them goes the wrong way. A mean over n senders, m of which attack, goes
(n − m − ε m) / n of the way: back where ε is above (n − m) / m.
"""

from __future__ import annotations

from fedloom.federation.attacks import Attack, Sight
from fedloom.federation.attacks.scale import check_factor
from fedloom.model.bank import Row


def ipm(epsilon: float = 0.5) -> Attack:
    """Send the opposite of what the honest have learned.

    Args:
        epsilon: ε, how many times it.

    Raises:
        UserError: It is not above 0.
    """
    check_factor("ipm", epsilon)

    def craft(delta: Row, sight: Sight) -> Row:
        return {name: -epsilon * sight.mean[name] for name in delta}

    return Attack(craft, looks=True)
