"""The coordinate-wise trimmed mean (Yin et al., 2018, arXiv:1803.01498, definition 2).

For every number of the adapter alone: of m senders the ⌊β m⌋ largest and the ⌊β m⌋ smallest changes are left
out, and the mean of the others is taken, by their weights (the paper's senders all weigh the same). Up to ⌊β
m⌋ senders, whatever they send, cannot carry it out of the range of the others. With β = 0 it is the mean.
"""

from __future__ import annotations

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes, count_of, warn_of_nobody
from fedloom.model.bank import Row


def trimmed_mean(beta: float = 0.2) -> Aggregator:
    """The trimmed mean.

    Args:
        beta: β, the share of the senders that is left out at either end.

    Raises:
        UserError: Nobody would be left.
    """
    if not 0 <= beta < 0.5:
        raise UserError(
            f"aggregator: trimmed_mean:{beta:g} leaves nobody; the share that is left out at either end must "
            "be at least 0 and below 0.5"
        )

    def combine(changes: Changes) -> Row:
        senders = len(changes.weights)
        cut = count_of(beta, senders)
        kept = slice(cut, senders - cut)
        if cut == 0 < beta and senders > 1:
            warn_of_nobody("trimmed_mean", beta, senders)
        result = {}
        for name, t in changes.deltas.tensors.items():  # [senders, *shape]
            ordered, order = t.sort(0)
            weights = changes.weights.to(t)[order][kept]  # [kept, *shape]
            total = weights.sum(0)
            # A peer may keep no weight for itself, and be the only one that is left.
            weighted = (weights * ordered[kept]).sum(0) / total.clamp(min=torch.finfo(t.dtype).tiny)
            result[name] = torch.where(total > 0, weighted, ordered[kept].mean(0))
        return result

    return combine
