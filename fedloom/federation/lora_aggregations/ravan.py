"""Ravan (Raje et al., 2025, arXiv:2506.05568): several small square matrices train, each with a scale.

    W = W_0 + s Σ_i s_i B_i H_i A_i;   client k trains H_ki and s_ki;   H_i ← Σ_k p_k s_ki H_ki,   s_i ← 1

The B_i are columns of LoRA's B, the A_i rows of its A, all orthonormal, drawn at random once and the same for
all; H_i begins as 0 and s_i as 1. With h heads of rank r / h, r² / h + h numbers per module are sent, and the
change has rank r. The mean of the products s_i H_i is exact, which the product of the means is not. The
paper's clients send the products; here they send both, h numbers more, and the server multiplies. With one
head whose scale rests it is Fed-SB's round (`fedsb.py`) between other factors.

On a graph (which the paper has not) each peer has H_i and s_i of its own between the same factors, and with
its neighbours' H_i ← Σ_j W_ij s_ji H_ji, s_i ← 1: the mean over peers of what they compute stays what it was.
"""

from __future__ import annotations

from functools import partial

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes, Refactoring
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.lora_aggregations import check_mean
from fedloom.model.adapters.square import R, S, with_heads
from fedloom.model.bank import Row


def ravan(heads: float = 4.0, *, aggregator: Aggregator) -> Refactoring:
    """Average the products of matrices and scales.

    Args:
        heads: h; LoRA's rank is a multiple of it.
        aggregator: What combines all else; only the mean has a meaning.

    Raises:
        UserError: It is another, or there is no such number of heads.
    """
    check_mean("ravan", "averages products of matrices and scales", aggregator)
    if not heads.is_integer() or heads < 1:
        raise UserError(
            f"lora_aggregation: ravan:{heads:g} is no number of heads; give a whole one from 1, such as "
            "ravan:4"
        )
    # The factors never change: there is no round after which they are others.
    return Refactoring(_combine, lambda adapter, round_: adapter, 0, partial(with_heads, heads=int(heads)))


def _combine(changes: Changes) -> Row:
    before, deltas, change = changes.before, changes.deltas.tensors, weighted_mean(changes)
    for name in [name for name in before if name.endswith(R)]:
        scales = name.removesuffix(R) + S
        H = before[name] + deltas[name]  # [senders, heads, rank / heads, rank / heads]
        s = before[scales] + deltas[scales]  # [senders, heads]
        mean = torch.einsum("k,kh,khij->hij", changes.weights.to(H), s, H)
        change |= {name: mean - before[name], scales: 1 - before[scales]}
    return change
