"""A bound on the norm of each change (Sun et al., 2019, arXiv:1911.07963), relative to the round's median.

    Δ ← Σ_k p_k Δ_k min(1, τ / ‖Δ_k‖),   τ = factor · median of the norms that are not 0

The paper has a constant τ; this one follows training, in which changes become smaller. Fewer than half of
those who changed anything cannot raise the median beyond the largest of the others, so that one sender moves
the mean by its weight times `factor` times that much at most. Where the factor is large it is the mean. Of an
even number of senders the median is the smaller one in the middle: of two, one can slow the other down by
sending next to nothing, and cannot outweigh it. Of one it bounds nothing.

On a graph the changes are neighbours' differences from a peer's own row, and it is self-centred clipping,
ClippedGossip (He et al., 2022, arXiv:2202.01545):

    w_i ← w_i + Σ_j W_ij (w_j − w_i) min(1, τ_i / ‖w_j − w_i‖)

whose τ_i the paper derives from how far honest neighbours are, which a peer does not know. Norms are those of
`federation.inner_products`.
"""

from __future__ import annotations

from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.aggregators.centered_clipping import check_factor, clipped
from fedloom.federation.inner_products import combination, lengths, median_of
from fedloom.model.bank import Row


def norm_bound(factor: float = 2.0) -> Aggregator:
    """The mean of bounded changes.

    Args:
        factor: The bound, in medians of the norms.

    Raises:
        UserError: It is not above 0.
    """
    check_factor("norm_bound", factor)

    def combine(changes: Changes) -> Row:
        norms = lengths(changes)
        weights = changes.weights.double().cpu()
        return combination(changes, weights * clipped(norms, factor * median_of(norms)))

    return combine
