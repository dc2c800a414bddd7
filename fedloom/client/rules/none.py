"""Plain local training: the rule that does nothing."""

from __future__ import annotations

from fedloom.client.rules import ClientRule


def none() -> ClientRule:
    """Plain local training."""
    return ClientRule(
        memory=lambda adapter: {},
        kept=lambda adapter: {},
        correct=lambda gradients, bank, start, memory, received: gradients,
        finish=lambda start, bank, steps, memory, received: (memory, {}),
        absorb=lambda kept, sent, share: kept,
    )
