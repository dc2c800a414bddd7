"""The geometric median, RFA (Pillutla et al., 2022, arXiv:1912.13445): as near as can be to all changes.

    Δ ← arg min over v of Σ_k p_k ‖Δ_k − v‖

by the paper's smoothed Weiszfeld steps:

    β_k ← p_k / max(ν, ‖Δ_k − v‖);   v ← Σ_k β_k Δ_k / Σ_k β_k

Senders of less than half of the weight, whatever they send, carry it away no further than a multiple of what
the others are apart. Where ν is larger than all distances it is the mean, and so it is of one sender, and of
equal ones. The steps begin at the mean of those senders that are nearest to one of them and have more than
half of the weight: from the mean of all, where the paper begins, it would take as many steps to get back as
an attacker is far away. A step costs as many numbers as there are senders, because only their weights change:
distances are quadratic forms in them (`federation.inner_products`). So steps go on until nothing moves, 1000
at most, where the paper takes a few.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.inner_products import combination, inner_products, pairwise, squared_distances
from fedloom.model.bank import Row

_STEPS, _STILL = 1000, 1e-12


def geometric_median(smoothing: float = 1e-6) -> Aggregator:
    """The point of the smallest sum of distances.

    Args:
        smoothing: ν, below which distances count alike.

    Raises:
        UserError: ν is not above 0: the step would divide by 0.
    """
    if not smoothing > 0:
        raise UserError(
            f"aggregator: geometric_median:{smoothing:g} divides by 0; the smoothing must be above 0, as in "
            "geometric_median:1e-6"
        )

    def combine(changes: Changes) -> Row:
        products = inner_products(changes)
        weights = changes.weights.double().cpu()
        a = _crowd(products, weights)
        for _ in range(_STEPS):
            away = squared_distances(products, a).sqrt().clamp(min=smoothing)
            near = weights / away
            before, a = a, near / near.sum()
            moved = ((a - before) @ products @ (a - before)).clamp(min=0).sqrt()
            if moved <= _STILL * away.median():
                break
        return combination(changes, a)

    return combine


def _crowd(
    products: Float64[Tensor, "senders senders"], weights: Float64[Tensor, " senders"]
) -> Float64[Tensor, " senders"]:
    """Weights of the mean of more than half of the weight, of those nearest to the most central sender."""
    apart = pairwise(products).sqrt()
    nearest = apart[int((apart @ weights).argmin())].argsort(stable=True)
    before = weights[nearest].cumsum(0) - weights[nearest]
    crowd = weights.new_zeros(len(weights))
    chosen = nearest[before <= 0.5 * weights.sum()]
    crowd[chosen] = weights[chosen]
    return crowd / crowd.sum()
