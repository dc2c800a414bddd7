"""A and B train in every round."""

from __future__ import annotations

from collections.abc import Collection

from fedloom.federation.train_factors import TrainFactors
from fedloom.model.adapters.products import DOWN, UP


def both() -> TrainFactors:
    """Every name, in every round."""
    return everything


def everything(names: Collection[str], round_: int) -> frozenset[str]:
    """All of some names; a peer's residual (`lora_aggregations.fedex`), which stands beside them, rests."""
    return frozenset(name for name in names if not name.endswith((UP, DOWN)))
