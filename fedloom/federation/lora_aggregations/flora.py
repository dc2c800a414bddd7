"""FLoRA (Wang et al., 2024, arXiv:2409.05976): the clients' products go to the base, factors start anew.

    F ← F + Σ_k p_k B_k A_k;   A ← drawn anew,   B ← 0

The server draws one A for all, where the paper leaves it to the clients. Stacking the factors, [p_1 B_1, …,
p_K B_K] · [A_1; …; A_K], gives the sum exactly, and clients may have unequal ranks. Everybody must be sent K
r rows and columns per module. One client's round is a merge of its adapter. With a cap on its rank F is the
nearest of that rank to all that clients ever learnt.
"""

from __future__ import annotations

import torch

from fedloom.data.randomness import derive_seed
from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes, Folding
from fedloom.federation.lora_aggregations import check_mean, pair_by_pair, product_weights
from fedloom.model.adapters.products import DOWN, UP
from fedloom.model.bank import Row


def flora(*, aggregator: Aggregator, residual_rank: int | None = None) -> Aggregator:
    """Fold the clients' products into the base.

    Args:
        aggregator: What combines all that is no pair of factors; only the mean has a meaning.
        residual_rank: The most rank that the base's change may have; None: any.

    Raises:
        UserError: It is another, or the rank is 0.
    """
    check_mean("flora", "adds up products", aggregator)
    if residual_rank == 0:
        raise UserError(
            "residual_rank: 0 leaves flora nothing: all that clients learn goes into the base's change; "
            "choose 1 or more, or --lora_aggregation fedex"
        )

    def of_a_pair(changes: Changes, name_a: str, name_b: str) -> Row:
        before, deltas = changes.before, changes.deltas.tensors
        A = before[name_a] + deltas[name_a]  # [senders, rank, d_in]
        B = before[name_b] + deltas[name_b]  # [senders, d_out, rank]
        module = name_a.removesuffix(".lora_A.weight")
        # As PEFT draws A by default: uniform within 1 / sqrt(d_in).
        draws = torch.Generator().manual_seed(derive_seed(changes.seed, name_a))
        drawn = torch.rand(before[name_a].shape, generator=draws, dtype=torch.float64) * 2 - 1
        return {
            module + UP: (B * product_weights(changes).to(B)[:, None, None]).movedim(0, 1).flatten(1),
            module + DOWN: A.flatten(0, 1),
            name_a: (drawn / A.shape[-1] ** 0.5).to(before[name_a]) - before[name_a],
            name_b: -before[name_b],
        }

    return Folding(pair_by_pair(of_a_pair), anew=True, rank=residual_rank)
