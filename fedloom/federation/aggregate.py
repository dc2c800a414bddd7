"""What comes back from clients, and how it becomes one pseudo-gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from fedloom.model.bank import Row, norm_of, usable


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer to a round.

    Attributes:
        client: Which client.
        adapter: Its adapter after local training.
        examples: Examples it trained on; its weight in the mean.
        loss: Mean training loss.
        correct: Answer tokens predicted right while training.
        labels: Answer tokens seen.
        tokens: Tokens that went through the model.
        norm: Euclidean length of its way, ``after - before``; known once it has been added up.
    """

    client: int
    adapter: Row
    examples: int
    loss: float
    correct: int
    labels: int
    tokens: int
    norm: float = math.nan

    @property
    def finite(self) -> bool:
        """Whether the loss and every parameter are finite numbers."""
        return math.isfinite(self.loss) and all(bool(t.isfinite().all()) for t in self.adapter.values())


@dataclass(frozen=True)
class Sums:
    """Some clients' answers, added up.

    Attributes:
        total: Σ_k n_k (before − after_k) over those that count.
        kept: Updates that count, without their adapters.
        left_out: Clients whose loss or update was not finite, or too large.
    """

    total: Row
    kept: list[ClientUpdate]
    left_out: list[int]


Reduce = Callable[[Sums], Sums]
"""``what was added up here -> what was added up everywhere``: where clients run is the runtime's business."""


@dataclass(frozen=True)
class Aggregate:
    """The clients' answers, added up.

    Attributes:
        pseudo_gradient: See `aggregate`; None when no client's answer counts.
        kept: Updates that count, without their adapters.
        left_out: Clients whose loss or update was not finite, or too large.
    """

    pseudo_gradient: Row | None
    kept: list[ClientUpdate]
    left_out: list[int]


def aggregate(
    before: Row, updates: Iterable[ClientUpdate], client_lr: float, reduce: Reduce = lambda here: here
) -> Aggregate:
    """The mean over clients, weighted by examples, of (before - after) / client_lr.

    For one local SGD step this is the mean gradient, hence its name (Reddi et al., 2021,
    arXiv:2003.00295, equation of the server's update). Updates are added up in the order in which they
    come and are not kept: memory does not grow with the number of clients, and the sum does not depend
    on how clients were grouped into waves.

    Args:
        before: The adapter that every client started from.
        updates: The clients' answers; one is left out whose loss or parameters are not finite, or whose own
            pseudo-gradient is beyond `model.bank.largest_usable`: its square would not be finite.
        client_lr: The clients' learning rate.
        reduce: Adds what other processes have added up; by default there are none.
    """
    sums = reduce(add_up(before, updates, client_lr))
    if not sums.kept:
        return Aggregate(None, sums.kept, sums.left_out)
    scale = 1.0 / (sum(update.examples for update in sums.kept) * client_lr)
    return Aggregate({name: t.mul_(scale) for name, t in sums.total.items()}, sums.kept, sums.left_out)


def add_up(before: Row, updates: Iterable[ClientUpdate], client_lr: float) -> Sums:
    """The sum over clients of (before - after), each times its examples, in the order in which they come."""
    total = {name: torch.zeros_like(t) for name, t in before.items()}
    kept: list[ClientUpdate] = []
    left_out: list[int] = []
    for update in updates:
        way = {name: before[name] - update.adapter[name] for name in total}
        if not (update.finite and usable(way, scale=1.0 / client_lr)):
            left_out.append(update.client)
            continue
        for name, t in total.items():
            t.add_(way[name], alpha=update.examples)
        kept.append(ClientUpdate(**{**vars(update), "adapter": {}, "norm": norm_of(way)}))
    return Sums(total, kept, left_out)
