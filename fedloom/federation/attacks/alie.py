"""A little is enough (Baruch et al., 2019, arXiv:1902.06156): as far from the mean as honest changes are.

Attackers see the honest changes (the paper's estimate them from their own), with mean μ and standard
deviation σ of each number, and all send

    μ − z σ,   z = Φ⁻¹((n − m − s) / (n − m)),   s = ⌊n/2 + 1⌋ − m

of n senders, m of which attack: s honest ones are then further out than the attackers, so that a majority
seems to stand with them. Φ is the normal distribution. For one attacker this z is 0 or below, however many
senders there are: there is nothing to hide behind, and the attackers send μ: an honest change. A z of one's
own, as the paper's experiments have it (1.5), goes further and may be seen.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from fedloom.federation.attacks import Attack, Sight
from fedloom.model.bank import Row


def alie(z: float = math.nan) -> Attack:
    """Hide among those that are far out.

    Args:
        z: How far, in standard deviations; not given: the paper's, by the number of senders.
    """

    def craft(delta: Row, sight: Sight) -> Row:
        far = hidden(sight.senders, sight.attackers) if math.isnan(z) else z
        return {name: sight.mean[name] - far * sight.deviation[name] for name in delta}

    return Attack(craft, looks=True)


def hidden(senders: int, attackers: int) -> float:
    """The paper's z; 0 where there is nothing to hide behind."""
    honest = senders - attackers
    supporters = senders // 2 + 1 - attackers
    # Attackers who are the majority need nobody, and Φ⁻¹(1) is infinite.
    share = min((honest - supporters) / honest, 1 - 0.5 / honest)
    return max(NormalDist().inv_cdf(share), 0.0) if share > 0 else 0.0
