"""Ravan's schedule: what is between LoRA's factors trains; see `lora_aggregations/ravan.py`."""

from __future__ import annotations

from collections.abc import Collection

from fedloom.federation.train_factors import TrainFactors


def heads() -> TrainFactors:
    """All but LoRA's A and B."""
    return all_but_factors


def all_but_factors(names: Collection[str], round_: int) -> frozenset[str]:
    """Those of some names that are neither LoRA's A nor its B."""
    return frozenset(name for name in names if ".lora_A." not in name and ".lora_B." not in name)
