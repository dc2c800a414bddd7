"""Gradient priority: which decoder layers the clients train and send.

    FedGPL    ACM Transactions on Autonomous and Adaptive Systems, 2025, doi:10.1145/3717835

The server computes a gradient g of the shared adapter on a little data of its own, scores every layer by it,
and picks the layers with the highest and some with the lowest scores:

    for every layer:   score ← mean over its adapted projections of the norm of their gradient
    layers to train    ← those with the highest scores ∪ those with the lowest

What "norm of the gradient" means is the choice of `grad_eval`, see `layer_scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.linalg import vector_norm

from fedloom.data.randomness import numpy_rng

GRAD_EVALS = ("l1", "l2", "lora_l1", "lora_l2", "lora_per_l1", "lora_per_l2")
LAYER_POLICIES = ("priority", "random", "in_turn", "spaced", "last", "first", "all")

EPS = 1e-8
"""Added to a weight's magnitude before a change is divided by it.

Weights of language models are around 1e-2, so this leaves six digits of a typical one as they are. It keeps
the score finite where a weight is exactly 0 (pruned, or quantised to the 0 that NF4 and int8 have).
"""

_BLOCK = 2**18
"""Entries of a dense matrix that exist at a time: 2 MiB in float64, which stays in a processor's cache."""


@dataclass(frozen=True)
class Projection:
    """One adapted linear layer.

    Attributes:
        a: The name of its down projection ``[r, d_in]`` in an adapter row.
        b: The name of its up projection ``[d_out, r]``.
        scale: LoRA's ``alpha / r``.
        weight: Gives the frozen weight, dequantised, as ``[d_out, d_in]`` of any floating dtype. Called only
            by the kinds of score that need it, for one projection at a time; the result is not kept.
    """

    a: str
    b: str
    scale: float
    weight: Callable[[], Tensor]


def names_in(layers: Iterable[Sequence[Projection]]) -> set[str]:
    """The parameters of some layers' adapted projections."""
    return {name for projections in layers for p in projections for name in (p.a, p.b)}


@torch.no_grad()
def layer_scores(
    row: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    layers: Sequence[Sequence[Projection]],
    grad_eval: str,
) -> Float64[Tensor, " layers"]:
    """Score layers by their gradient: the mean over a layer's adapted projections.

    With factors A and B, gradients dA and dB, frozen weight W, ``scale`` s, and D = B·dA + dB·A, the change
    of the product B·A to first order, a projection counts

        l1, l2                      the mean of ‖dA‖ and ‖dB‖
        lora_l1, lora_l2            ‖D‖
        lora_per_l1, lora_per_l2    ‖D / (|W + s·B·A| + EPS)‖, element by element

    in the entrywise 1- or 2-norm.

    Everything is computed in float64: a quotient is largest where W and s·B·A nearly cancel, which is where
    float32 has no digits left, and these entries make most of the norm. A dense matrix exists only block of
    rows by block of rows, so that this costs a few MiB beside W, whatever the model. `lora_l2` forms none at
    all; it does not resolve a D whose two terms cancel to less than about 1e-8 of their size.

    Args:
        row: The adapter, ``{name: tensor[*shape]}``.
        gradient: Its gradient, under the same names, on the same device.
        layers: The adapted projections of each layer to be scored. A layer without any has no score, so the
            caller leaves it out, and gives `select_layers` the numbers of those that are left.
        grad_eval: One of `GRAD_EVALS`.

    Returns:
        A score per layer, on the CPU. It is not finite where the gradient is not.

    Raises:
        ValueError: `grad_eval` is unknown, or a layer has no projections.
    """
    if grad_eval not in GRAD_EVALS:
        raise ValueError(f"grad_eval {grad_eval!r}: must be one of {', '.join(GRAD_EVALS)}")
    for index, projections in enumerate(layers):
        if not projections:
            raise ValueError(f"layers[{index}] has no adapted projection; score only layers that have one")
    scores = [torch.stack([_score(row, gradient, p, grad_eval) for p in layer]).mean() for layer in layers]
    return torch.stack(scores).cpu() if scores else torch.zeros(0, dtype=torch.float64)


def _score(
    row: Mapping[str, Tensor], gradient: Mapping[str, Tensor], projection: Projection, grad_eval: str
) -> Float64[Tensor, ""]:
    order = int(grad_eval[-1])
    if grad_eval in ("l1", "l2"):
        of_factors = [
            vector_norm(gradient[name], order, dtype=torch.float64) for name in (projection.a, projection.b)
        ]
        return torch.stack(of_factors).mean()
    a, b, da, db = (t[name].double() for t in (row, gradient) for name in (projection.a, projection.b))
    # D = B·dA + dB·A as one product of twice the rank.
    left, right = torch.cat([b, db], dim=1), torch.cat([da, a])
    if grad_eval == "lora_l2":
        return _product_norm(left, right)
    weight = projection.weight() if grad_eval.startswith("lora_per") else None
    return _blockwise_norm(left, right, order, weight, projection.scale)


def _product_norm(
    left: Float64[Tensor, "d_out rank2"], right: Float64[Tensor, "rank2 d_in"]
) -> Float64[Tensor, ""]:
    """‖left · right‖ in the 2-norm, from Gram matrices: ‖L·R‖² = tr(RᵀLᵀL·R) = Σ (LᵀL) ∘ (R·Rᵀ)."""
    squared = ((left.T @ left) * (right @ right.T)).sum()
    # Rounding may leave a square of 0 slightly negative.
    return squared.clamp(min=0).sqrt()


def _blockwise_norm(
    left: Float64[Tensor, "d_out rank2"],
    right: Float64[Tensor, "rank2 d_in"],
    order: int,
    weight: Float[Tensor, "d_out d_in"] | None,
    scale: float,
) -> Float64[Tensor, ""]:
    """‖D‖, or ‖D / (|W + s·B·A| + EPS)‖ where there is a weight, block of rows by block of rows."""
    rank, rows = left.shape[1] // 2, max(1, _BLOCK // right.shape[1])
    norms = []
    for start in range(0, left.shape[0], rows):
        block = slice(start, start + rows)
        change = left[block] @ right
        if weight is not None:
            tuned = torch.addmm(weight[block].to(change), left[block, :rank], right[rank:], alpha=scale)
            change /= tuned.abs_().add_(EPS)
        norms.append(vector_norm(change, order))
    return vector_norm(torch.stack(norms), order)


def select_layers(
    scores: Float[Tensor, " layers"],
    *,
    highest: int,
    lowest: int,
    policy: str,
    seed: int,
    round_number: int,
    numbers: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Pick the layers of a round.

    `priority` takes the ``highest`` layers with the highest score, then, of the rest, the ``lowest`` with the
    lowest; of equal scores the layer with the lower number comes first. The baselines take as many layers,
    min(highest + lowest, layers), without looking at scores: `random` by (seed, round) alone, `in_turn` those
    whose turn it is, `spaced` the middle one of each of as many equal parts of the model,
    `last` and `first` from either end. `all` takes every layer. With highest = lowest = 0 nothing is taken,
    except by `all`.

    Args:
        scores: As `layer_scores` gives them.
        highest: How many layers with the highest scores; more than there are means all.
        lowest: How many layers with the lowest scores, likewise.
        policy: One of `LAYER_POLICIES`.
        seed: Of the run.
        round_number: Which round.
        numbers: The layers' numbers in the model, ascending, where not every layer was scored; None: 0, 1,
            and so on.

    Returns:
        The numbers of the picked layers, ascending.

    Raises:
        ValueError: A score is not finite, and which layer's; a count is negative; the policy is unknown;
            `numbers` does not fit `scores`.
    """
    if policy not in LAYER_POLICIES:
        raise ValueError(f"layer policy {policy!r}: must be one of {', '.join(LAYER_POLICIES)}")
    if highest < 0 or lowest < 0:
        raise ValueError(f"highest {highest}, lowest {lowest}: a number of layers must be at least 0")
    layers = list(range(len(scores)) if numbers is None else numbers)
    if len(layers) != len(scores) or layers != sorted(set(layers)):
        raise ValueError(f"numbers {layers}: must be {len(scores)} ascending layer numbers, one per score")
    for layer, finite, score in zip(layers, scores.isfinite().tolist(), scores.tolist(), strict=True):
        if not finite:
            raise ValueError(f"layer {layer}: its score is {score}; a score must be finite")
    count = min(highest + lowest, len(layers))
    if policy == "priority":
        picked = _extremes(dict(zip(layers, scores.tolist(), strict=True)), highest, lowest)
    elif policy == "random":
        rng = numpy_rng(seed, "select layers", round_number)
        picked = [layers[i] for i in rng.permutation(len(layers))[:count]]
    elif policy == "in_turn":
        # Every pass over the layers has an order of its own: with one order a layer could meet the same links
        # of a graph that changes by turns again and again, and never the others.
        pass_, place = divmod(round_number, -(-len(layers) // count)) if count else (0, 0)
        order = numpy_rng(seed, "layers in turn", pass_).permutation(len(layers))
        picked = [layers[order[(place * count + i) % len(layers)]] for i in range(count)]
    elif policy == "spaced":
        picked = [layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)]
    elif policy == "last":
        picked = layers[len(layers) - count :]
    elif policy == "first":
        picked = layers[:count]
    else:
        picked = layers
    return tuple(sorted(picked))


def _extremes(scores: Mapping[int, float], highest: int, lowest: int) -> list[int]:
    """The layers with the highest scores, then those with the lowest of the rest, no layer twice."""
    falling = sorted(scores, key=lambda layer: (-scores[layer], layer))
    rising = sorted(falling[highest:], key=lambda layer: (scores[layer], layer))
    return falling[:highest] + rising[:lowest]
