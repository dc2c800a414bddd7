"""FFA-LoRA (Sun et al., 2024, arXiv:2403.12313): A stays as it was drawn, the same for all; B trains.

The mean of the products is then the product of the means, Σ_k p_k B_k A = (Σ_k p_k B_k) A, and about half as
much is sent. On a graph that is DFL-LoRA, which `training_type` chooses.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.federation.train_factors import TrainFactors


def b() -> TrainFactors:
    """All but LoRA's A."""
    return all_but_a


def all_but_a(names: Collection[str], round_: int) -> frozenset[str]:
    """Those of some names that are not LoRA's A."""
    return frozenset(name for name in names if ".lora_A." not in name)
