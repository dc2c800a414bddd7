"""Nobody attacks."""

from __future__ import annotations

from fedloom.federation.attacks import Attack


def none() -> Attack:
    """Trains and sends as all do."""
    return Attack()
