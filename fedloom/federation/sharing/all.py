"""All parameters are shared."""

from __future__ import annotations

from fedloom.federation.sharing import Sharing


def all() -> Sharing:
    """Every name."""
    return frozenset
