"""Example level: a client's steps hide each of its examples (DP-SGD; Abadi et al., 2016, arXiv:1607.00133).

With n examples, a step that takes B of them on average, and a bound C:

    S ← each example with probability q = min(1, B / n)            perhaps none: the step counts all the same
    g ← (Σ_{e in S} g_e · min(1, C / ‖g_e‖) + z C · N(0, I)) / (q n)

g_e is the gradient of example e's own loss, the mean over its labels; the norm is over all that trains.
Whatever a client does with g is no secret any more: its rule, its optimiser, what it sends, what servers or
neighbours make of that. With LoRA's A frozen it is DP-FFA-LoRA (Sun et al., 2024, arXiv:2403.12313).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.data.randomness import secret_normal, secret_uniform
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Batch
from fedloom.model.per_example import clipped_sums
from fedloom.model.stacked import StackedModel


@dataclass(frozen=True)
class ExamplePrivacy:
    """How clients hide their examples; see the module.

    Attributes:
        clip: C; infinite: gradients stay as they are.
        noise: z.
        key: Of the noise and of which examples are drawn.
    """

    clip: float
    noise: float
    key: int

    def draw(self, examples: int, batch: int, *ids: int) -> list[int]:
        """Which of a client's examples a step has.

        Args:
            examples: n.
            batch: B.
            *ids: Whose step it is.
        """
        drawn = secret_uniform(self.key, "examples", *ids, size=examples)
        return (drawn < rate_of(examples, batch)).nonzero()[0].tolist()

    def noised(self, total: Row, expected: float, *ids: int) -> Row:
        """The gradient of a client's step.

        Args:
            total: Σ g_e, each within C.
            expected: q n.
            *ids: Whose step it is.
        """
        whole = noised(total, self.noise * self.clip, self.key, *ids) if self.noise else total
        return {name: t / expected for name, t in whole.items()}


def noised(total: Row, deviation: float, key: int, *ids: int) -> Row:
    """A row with normal noise on every number.

    Args:
        total: Without it.
        deviation: Standard deviation of the noise.
        key: Of the noise.
        *ids: Whose it is.
    """
    sizes = [t.numel() for t in total.values()]
    noise = torch.from_numpy(secret_normal(key, "noise", *ids, size=sum(sizes)) * deviation)
    pieces = zip(total.items(), noise.split(sizes), strict=True)
    return {name: t + piece.view(t.shape).to(t) for (name, t), piece in pieces}


def rate_of(examples: int, batch: int) -> float:
    """q: with which probability a step of ``batch`` examples on average has each of ``examples``."""
    return min(1.0, batch / examples)


@dataclass(frozen=True)
class Noised:
    """Whose steps are noised.

    Attributes:
        client: Which client.
        round: In which round, from 0.
        expected: Examples of a step, on average.
    """

    client: int
    round: int
    expected: float


def noised_gradients(
    model: StackedModel,
    bank: AdapterBank,
    passes: Iterable[tuple[int, list[list[Batch]]]],
    privacy: ExamplePrivacy,
    who: Sequence[Noised],
    index: int,
    frozen: Row,
    resting: Row,
    dropout_seed: int | None,
) -> AdapterBank:
    """The gradients of a step of each client.

    Args:
        model: The frozen base with stacked adapters.
        bank: Where each client is.
        passes: The first client of each pass, and the examples of each client from there on, a batch each.
        privacy: Clip and noise.
        who: The clients, one for each row of ``bank``.
        index: Which of the round's steps.
        frozen: Adapter parameters that get no gradient, the same for all clients.
        resting: The same, each client's own, ``[clients, *shape]``.
        dropout_seed: The run's seed; None turns dropout off.
    """
    total = bank.map(torch.zeros_like)
    for first, clients in passes:
        rows = slice(first, first + len(clients))
        shared: dict[str, Tensor] = {n: t.expand(len(clients), *t.shape) for n, t in frozen.items()}
        shared |= {name: t[rows] for name, t in resting.items()}
        leaves = {name: t[rows] for name, t in bank.tensors.items()}
        sums = clipped_sums(model, leaves, shared, clients, privacy.clip, dropout_seed)
        for name, t in sums.items():
            total.tensors[name][rows] += t
    rows_ = [
        privacy.noised(total.row(k), one.expected, one.client, one.round, index) for k, one in enumerate(who)
    ]
    return AdapterBank.stack(rows_)
