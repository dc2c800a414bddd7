"""Krum (Blanchard et al., 2017, arXiv:1703.02757): the one change that has the nearest neighbours.

Of n senders, f = ⌊share · n⌋ of which may be attackers:

    score_k ← Σ of ‖Δ_k − Δ_j‖² over the n − f − 2 senders j ≠ k that are nearest to k
    Δ ← Δ_k of the smallest score

The paper asks for n ≥ 2 f + 3. Where there are fewer one neighbour counts at least, and attackers who send
the same may win; it is told. Distances are those of `federation.inner_products`. Weights have no part in it.
With equal senders it is any of them. One change alone comes through, so that noise is not averaged out;
`multi_krum` takes the mean of many.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from jaxtyping import Float64
from torch import Tensor

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes, count_of
from fedloom.federation.inner_products import combination, inner_products, pairwise
from fedloom.model.bank import Row

log = logging.getLogger(__name__)


def krum(share: float = 0.2) -> Aggregator:
    """The change in the thickest crowd.

    Args:
        share: Of the senders, that may be attackers.

    Raises:
        UserError: It is no share, or half of the senders.
    """
    check_share("krum", share)

    def combine(changes: Changes) -> Row:
        scores = krum_scores(changes, share)
        best = torch.zeros_like(scores)
        best[int(scores.argmin())] = 1
        return combination(changes, best)

    return combine


def krum_scores(changes: Changes, share: float) -> Float64[Tensor, " senders"]:
    """Each sender's sum of squared distances to its nearest neighbours."""
    senders = len(changes.weights)
    attackers = count_of(share, senders)
    if attackers and senders < 2 * attackers + 3:
        _warn(attackers, senders)
    apart = pairwise(inner_products(changes))
    apart.fill_diagonal_(torch.inf)
    near = min(max(senders - attackers - 2, 1), senders - 1)
    return apart.sort(1).values[:, :near].sum(1)


@cache
def _warn(attackers: int, senders: int) -> None:
    """Say once that a crowd is too small."""
    log.warning(
        "krum does not withstand %d attackers among %d senders: it takes at least %d senders",
        attackers,
        senders,
        2 * attackers + 3,
    )


def check_share(name: str, share: float) -> None:
    """Refuse a share of attackers that nothing stands against.

    Raises:
        UserError: It is not at least 0 and below 0.5.
    """
    if not 0 <= share < 0.5:
        raise UserError(
            f"aggregator: {name}:{share:g} takes half of the senders or more for attackers; it must be "
            "at least 0 and below 0.5"
        )
