"""Fed-SB's schedule: B in the first round, A in the second, then the square matrix R between them.

What becomes of the factors after the first two rounds stands in `lora_aggregations/fedsb.py`.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.federation.train_factors import TrainFactors

_IN_TURN = (".lora_B.", ".lora_A.", ".lora_R.")


def square() -> TrainFactors:
    """B, A, and from then on R."""

    def opened(names: Collection[str], round_: int) -> frozenset[str]:
        trains = _IN_TURN[min(round_, len(_IN_TURN) - 1)]
        return frozenset(name for name in names if trains in name or ".lora_" not in name)

    return opened
