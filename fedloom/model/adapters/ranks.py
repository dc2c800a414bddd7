"""Clients of unequal LoRA rank in one bank, which has the rank R of the largest.

A client of rank r computes ``y = W x + (alpha / r) B A x`` with A ``[r, d_in]`` and B ``[d_out, r]``. In the
bank its A has R rows and its B has R columns, zero in both beyond r. That needs no kernel of its own:

- Zeros add nothing to ``B A x``. The gradient of a row of A is a multiple of B's column, and that of B's
  column one of A's row: both stay zero for ever, under SGD, momentum, Adam, weight decay, a proximal term.
- The scale goes into B. With ``B diag(R / r, ..., R / r, 0, ..., 0)`` in its place, the pass's one scale
  ``alpha / R`` is ``alpha / r`` for this client. And no client sees beyond its rank, even where A is one full
  row that belongs to all.

A client starts from the first r rows of the common initial A. PEFT's default draws A from a distribution that
depends on d_in alone, so an adapter of rank r would start from the same one. The server may truncate what it
sends and average by position (HetLoRA: Cho et al., 2024, arXiv:2401.06432).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftType
from torch import Tensor

from fedloom.errors import UserError
from fedloom.model.bank import Row

_RANK_AXIS = {".lora_A.weight": -2, ".lora_B.weight": -1}


def check_ranks(config: PeftConfig, ranks: Sequence[int]) -> None:
    """Refuse ranks that clients of this adapter cannot have.

    Args:
        config: The adapter of the bank; its ``r`` is the largest rank.
        ranks: Of each client.

    Raises:
        UserError: A rank is too large or too small, or the adapter has no one rank.
    """
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(
            f"ranks: only LoRA has ranks, and the adapter is {kind}; leave it out, or choose LoRA"
        )
    if config.rank_pattern:
        raise UserError(
            f"ranks: rank_pattern {str(config.rank_pattern)[:80]} gives layers ranks of their own, and "
            "clients cannot have theirs beside it; leave one of the two out"
        )
    for rank in ranks:
        if not 1 <= rank <= config.r:
            raise UserError(
                f"ranks: {rank} is no rank of a client; must be from 1 to the adapter's own, {config.r}; "
                "choose a smaller one or raise the adapter's"
            )


def rank_factor(config: PeftConfig, rank: int) -> float:
    """How much larger a client's scale is than that of the bank's rank R: R / rank, with rsLoRA its root."""
    ratio = config.r / rank
    return math.sqrt(ratio) if config.use_rslora else ratio


def at_ranks(
    parameters: Mapping[str, Tensor], config: PeftConfig, ranks: Sequence[int]
) -> Mapping[str, Tensor]:
    """The parameters to run a pass with, so that each client has its own rank and scale; differentiable.

    Args:
        parameters: ``{name: tensor[clients, *shape]}`` of the bank's rank, those that nobody trains included.
        config: The adapter of the bank.
        ranks: Of each client; the parameters as they are where all are the bank's.

    Raises:
        UserError: As `check_ranks`.
        ValueError: There are not as many ranks as clients.
    """
    check_ranks(config, ranks)
    if all(rank == config.r for rank in ranks):
        return parameters
    factors = torch.tensor([[rank_factor(config, rank)] for rank in ranks], dtype=torch.float64)
    factors = factors.masked_fill(_beyond(ranks, config.r), 0)
    found = dict(parameters)
    for name, t in parameters.items():
        if _rank_axis(name) == -1:
            if len(ranks) != t.shape[0]:
                raise ValueError(f"{name} has {t.shape[0]} clients, but there are {len(ranks)} ranks")
            factors = factors.to(t)
            found[name] = t * factors[:, None, :]
    return found


def within_ranks(tensors: Mapping[str, Tensor], ranks: Sequence[int]) -> Row:
    """A bank's tensors with zeros beyond each client's rank: where clients start, and what mixing must leave.

    Args:
        tensors: ``{name: tensor[clients, *shape]}``; what is no factor of LoRA comes back as it is.
        ranks: Of each client.
    """
    found = dict(tensors)
    for name, t in tensors.items():
        if axis := _rank_axis(name):
            beyond = _beyond(ranks, t.shape[axis]).to(t.device)
            found[name] = t.masked_fill(beyond[:, None, :] if axis == -1 else beyond[:, :, None], 0)
    return found


def truncated(row: Mapping[str, Tensor], rank: int) -> Row:
    """A client's adapter without what is beyond its rank, to be sent or saved; factors are copied.

    Args:
        row: ``{name: tensor[*shape]}``; what is no factor of LoRA (a head that trains) comes back as it is.
        rank: The client's; the row's own at most.
    """
    return {
        name: t.narrow(axis, 0, rank).clone(memory_format=torch.contiguous_format)
        if (axis := _rank_axis(name))
        else t
        for name, t in row.items()
    }


def padded(row: Mapping[str, Tensor], rank: int) -> Row:
    """The reverse of `truncated`: a client's adapter with zeros up to the bank's rank.

    Raises:
        ValueError: The row has a larger rank.
    """
    found = dict(row)
    for name, t in row.items():
        if axis := _rank_axis(name):
            missing = rank - t.shape[axis]
            if missing < 0:
                raise ValueError(f"{name} has rank {t.shape[axis]}, more than the bank's {rank}")
            found[name] = F.pad(t, (0, missing) if axis == -1 else (0, 0, 0, missing))
    return found


def _rank_axis(name: str) -> int:
    """Where a parameter's rank stands among its axes, from the end; 0 where it has none."""
    return next((axis for ending, axis in _RANK_AXIS.items() if name.endswith(ending)), 0)


def _beyond(ranks: Sequence[int], largest: int) -> Tensor:
    """``[clients, largest]``: True beyond each client's rank."""
    return torch.arange(largest) >= torch.tensor(ranks)[:, None]
