"""A peer's own row of w_i ← Σ_j W_ij w_j, from its neighbours' rows alone; see `federation.peers`.

    w_i ← w_i + Σ_j W_ij (w_j − w_i)        over the neighbours j whose edge was agreed on

W_ij is the Metropolis weight of the configured graph, so that an edge that fails gives its weight back to
both diagonals. What an edge adds at one end it takes at the other, W_ij (w_j − w_i) = −W_ij (w_i − w_j): the
mean over all peers stays what it was, also where one end adds its difference rounds later.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedloom.model.bank import Row


def edge_weight(degree: int, other_degree: int) -> float:
    """The Metropolis weight of an edge, from the degrees of its ends; see `federation.matrix.metropolis`."""
    return 1.0 / (1.0 + max(degree, other_degree))


def difference(own: Row, other: Row, weight: float) -> Row:
    """W_ij (w_j − w_i) of the parameters that the neighbour sent."""
    return {name: weight * (t - own[name].to(t.device)) for name, t in other.items()}


def moved(own: Row, differences: Iterable[Row]) -> Row:
    """A row with differences added, in their order; parameters that they do not have stay."""
    after = dict(own)
    for change in differences:
        for name, t in change.items():
            after[name] = after[name] + t.to(after[name].device)
    return after
