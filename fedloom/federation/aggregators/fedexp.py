"""FedExP (Jhunjhunwala et al., 2023, arXiv:2301.09604): the server goes further where clients disagree.

Where clients' changes point apart their mean is short, and a step of it is too small. With M the clients of a
round that count:

    Δ̄ ← Σ_k p_k Δ_k;   η ← max(1, Σ_k ‖Δ_k‖² / (2 M (‖Δ̄‖² + ε)));   Δ ← η Δ̄

Of clients that all went the same way η is 1, and it is the mean; so it is of one client, and where ε is
large. Norms are those of the numbers that were sent. The paper's clients weigh the same, and it takes the
mean of the last two models at the very end, which is no part of this. Among peers, whose changes are
distances to neighbours, there is no such argument for a longer step, and it is refused.
"""

from __future__ import annotations

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes, check_server
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.model.bank import Row, norm_of


def fedexp(epsilon: float = 1e-3) -> Aggregator:
    """The mean, extrapolated.

    Args:
        epsilon: ε, which bounds η where clients cancel each other; of the size of a squared norm of a change.

    Raises:
        UserError: ε is negative.
    """
    if epsilon < 0:
        raise UserError(
            f"aggregator: fedexp:{epsilon:g} is negative; epsilon must be at least 0, as in fedexp:1e-3"
        )

    def combine(changes: Changes) -> Row:
        check_server(
            changes, "fedexp", "how far peers are from their neighbours is no reason to step further"
        )
        mean = weighted_mean(changes)
        squares = changes.deltas.map(lambda t: t.double()).norms().square()
        below = 2 * (norm_of({name: t.double() for name, t in mean.items()}) ** 2 + epsilon)
        step = max(1.0, float(squares.mean()) / below) if below else 1.0
        return {name: step * t for name, t in mean.items()}

    return combine
