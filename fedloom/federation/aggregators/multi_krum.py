"""Multi-Krum (Blanchard et al., 2017, arXiv:1703.02757): the mean of the changes with the nearest neighbours.

Of n senders the n − f (how many is left open by the paper) of the smallest scores, as `krum` has them, with f
= ⌊share · n⌋; of these the mean by their weights (the paper's senders all weigh the same). Nobody is left out
where f = 0, and it is the mean.
"""

from __future__ import annotations

import torch

from fedloom.federation.aggregators import Aggregator, Changes, count_of, warn_of_nobody
from fedloom.federation.aggregators.krum import check_share, krum_scores
from fedloom.federation.inner_products import combination
from fedloom.model.bank import Row


def multi_krum(share: float = 0.2) -> Aggregator:
    """The mean of the changes in the thickest crowd.

    Args:
        share: Of the senders, that may be attackers.

    Raises:
        UserError: It is no share, or half of the senders.
    """
    check_share("multi_krum", share)

    def combine(changes: Changes) -> Row:
        senders = len(changes.weights)
        left_out = count_of(share, senders)
        if left_out == 0 < share and senders > 1:
            warn_of_nobody("multi_krum", share, senders)
        kept = torch.ones(senders, dtype=torch.bool)
        if left_out:
            scores = krum_scores(changes, share)
            kept[scores.argsort(stable=True)[senders - left_out :]] = False
        weights = changes.weights.double().cpu() * kept
        # A peer may keep no weight for itself, and be the only one that is left.
        weights = weights if weights.sum() > 0 else kept.double()
        return combination(changes, weights / weights.sum())

    return combine
