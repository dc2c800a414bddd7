"""Noise instead of a change (Blanchard et al., 2017, arXiv:1703.02757, their Gaussian attackers).

    sent ← N(0, s²),   s = factor · root mean square of the attacker's own Δ

for every tensor with its own s. The paper draws with a deviation of 200, whatever the gradients are like.
"""

from __future__ import annotations

import torch

from fedloom.federation.attacks import Attack, Sight
from fedloom.federation.attacks.scale import check_factor
from fedloom.model.bank import Row


def noise(factor: float = 100.0) -> Attack:
    """Send what nobody has learned.

    Args:
        factor: Its size, in those of the attacker's own change.

    Raises:
        UserError: It is not above 0.
    """
    check_factor("noise", factor)

    def craft(delta: Row, sight: Sight) -> Row:
        # Drawn on the CPU, so that all machines draw alike.
        generator = torch.Generator().manual_seed(sight.seed)
        made = {}
        for name in sorted(delta):
            t = delta[name]
            drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            made[name] = factor * t.square().mean().sqrt() * drawn
        return made

    return Attack(craft)
