"""The coordinate-wise median (Yin et al., 2018, arXiv:1803.01498, definition 1).

For every number of the adapter alone: the middle of what the senders changed it by; of an even number of
senders the mean of the two in the middle. Fewer than half of them, whatever they send, cannot carry it out of
the range of the others. Senders count alike: weights have no part in it.
"""

from __future__ import annotations

from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.model.bank import Row


def median() -> Aggregator:
    """The coordinate-wise median."""

    def combine(changes: Changes) -> Row:
        middle = {}
        for name, t in changes.deltas.tensors.items():  # [senders, *shape]
            ordered, senders = t.sort(0).values, len(t)
            middle[name] = (ordered[(senders - 1) // 2] + ordered[senders // 2]) / 2
        return middle

    return combine
