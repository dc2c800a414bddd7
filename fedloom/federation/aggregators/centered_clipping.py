"""Centred clipping (Karimireddy et al., 2021, arXiv:2012.10333): nobody pulls further than most are away.

    v ← 0;   three times:   v ← v + Σ_k p_k (Δ_k − v) min(1, τ / ‖Δ_k − v‖)
    Δ ← v

τ is `factor` times the median of the distances ‖Δ_k − v‖ of those that are not at v: a constant τ, as the
paper has it, would have to be found by hand for every model and be changed as training goes. v begins at no
change, where the paper's begins at the last round's; senders count by their weights p_k, the paper's alike.
Its guarantee over many rounds rests on the workers' momentum, which is no part of this. Where the factor is
large it is the mean. With one step it is `norm_bound`. Distances are those of `federation.inner_products`.
"""

from __future__ import annotations

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.inner_products import combination, inner_products, median_of, squared_distances
from fedloom.model.bank import Row


def centered_clipping(factor: float = 1.0, steps: float = 3.0) -> Aggregator:
    """Clip changes around the point that they are clipped around.

    Args:
        factor: τ, in medians of the distances.
        steps: How often.

    Raises:
        UserError: The factor is not above 0, or there is no step.
    """
    check_factor("centered_clipping", factor)
    if steps < 1 or steps != int(steps):
        raise UserError(
            f"aggregator: centered_clipping:{factor:g}:{steps:g} takes no whole number of steps; must be at "
            "least 1"
        )

    def combine(changes: Changes) -> Row:
        products, weights = inner_products(changes), changes.weights.double().cpu()
        a = torch.zeros_like(weights)
        for _ in range(int(steps)):
            away = squared_distances(products, a).sqrt()
            pull = weights * clipped(away, factor * median_of(away))
            a = a * (1 - pull.sum()) + pull
        return combination(changes, a)

    return combine


def clipped(lengths: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """min(1, most / length) of each; 1 where there is no length."""
    return torch.where(lengths > most, most / lengths, 1.0)


def check_factor(name: str, factor: float) -> None:
    """Refuse a bound that nothing keeps within.

    Raises:
        UserError: It is not above 0.
    """
    if not factor > 0:
        raise UserError(
            f"aggregator: {name}:{factor:g} clips every change to nothing; the factor must be above 0, as in "
            f"{name}:1"
        )
