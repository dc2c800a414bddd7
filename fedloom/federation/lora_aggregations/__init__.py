"""How LoRA's factors are combined; every file beside this one is one way.

Each makes of the run's aggregator the one that is used: averaging the factors of B_k A_k is not averaging the
products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.model.bank import AdapterBank, Row


def check_mean(name: str, what: str, aggregator: Aggregator) -> None:
    """Refuse an aggregator other than the mean.

    Args:
        name: Of the LoRA aggregation.
        what: It does what only the mean goes with.
        aggregator: The run's.

    Raises:
        UserError: It is another.
    """
    if aggregator is not weighted_mean:
        raise UserError(
            f"lora_aggregation: {name} {what}, and takes no aggregator but mean; leave out --aggregator, or "
            "choose --lora_aggregation factors"
        )


def pair_by_pair(of_a_pair: Callable[[Changes, str, str], Row]) -> Aggregator:
    """The aggregator that combines each pair of factors in one way, and all else by the weighted mean.

    Args:
        of_a_pair: ``(changes, name of A, name of B) -> change`` of these two.
    """

    def combine(changes: Changes) -> Row:
        factored = {name for pair in changes.pairs for name in pair}
        rest = {name: t for name, t in changes.deltas.tensors.items() if name not in factored}
        change = weighted_mean(Changes(changes.before, AdapterBank(rest), changes.weights))
        for name_a, name_b in changes.pairs:
            change |= of_a_pair(changes, name_a, name_b)
        return change

    return combine


def product_weights(changes: Changes) -> torch.Tensor:
    """By what each sender's product counts: its weight, and the scale of its rank. ``[senders]``."""
    return changes.weights if changes.scales is None else changes.weights * changes.scales
