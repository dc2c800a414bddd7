"""The sum of the clients' changes in whole numbers, which masks can hide: all that a server needs of a round.

    Bonawitz et al., 2017, doi:10.1145/3133956.3133982

A client sends its change as whole numbers modulo 2³², to which masks can be added that cancel in the sum
of all (`runtimes.flower.masks`). With n_k its examples, n as many as a client may have in a round,
p_k = n_k / n, and K clients in a round:

    x_k ← round(2^f · clip(p_k Δ_k, ±R)) mod 2³²            f the largest with K · R · 2^f ≤ 2³¹ − K
    Δ ← 2^−f · (Σ_k x_k mod 2³²) / Σ_k p_k                  mod 2³² between −2³¹ and 2³¹

Sums are exact, so that a server that adds up what is masked finds what one process finds, to the bit. The
counts that metrics need (examples, tokens, the loss) are summed with it, modulo 2⁶⁴, since a client's own
tell something of it too. A number of a change beyond R is cut, and half a unit of 2^−f is lost by rounding.
With int8 they are numbers modulo 2¹⁶, two bytes each, of which log₂ K bits are for the number of clients: of
up to 127 each has at least the 127 steps to either side that int8 has.
Under user-level privacy clients count alike, p_k = 1, and numbers are cut towards zero in place of rounded,
so that what is sent is within the clip that the change is within.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedloom.model.bank import Row

NUMBERS, COUNTS = "numbers", "counts"
"""The names in a payload: int32 or int16, of all parameters by name, and int64."""

_LOSS_UNITS = 2**24


@dataclass(frozen=True)
class Counts:
    """What one client, or several together, trained on.

    Attributes:
        clients: How many they are.
        examples, correct, labels, tokens: As in `Update`.
        loss: Mean training loss, weighted by examples.
    """

    clients: int
    examples: int
    correct: int
    labels: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class SecureSum:
    """How changes become whole numbers, and a sum of them a change.

    Attributes:
        largest: R, beyond which a number of p_k Δ_k is cut.
        clients: K, the most clients of a round.
        examples: n, the most examples of a client in a round; None: clients count alike, p_k = 1.
        bits: Of a number on the wire, 32 or 16.
    """

    largest: float
    clients: int
    examples: int | None = None
    bits: Literal[16, 32] = 32

    @property
    def units(self) -> float:
        """2^f, how many whole numbers there are to one."""
        most = 2 ** (self.bits - 1) - self.clients
        return 2.0 ** math.floor(math.log2(most / (self.clients * self.largest)))

    @property
    def dtype(self) -> torch.dtype:
        """Of numbers on the wire."""
        return torch.int32 if self.bits == 32 else torch.int16

    def encode(self, delta: Row, counts: Counts) -> Row:
        """What a client sends: its change, and its counts.

        Raises:
            ValueError: The change or the loss is not finite.
        """
        if not all(bool(t.isfinite().all()) for t in delta.values()) or not math.isfinite(counts.loss):
            raise ValueError("its numbers are not finite")
        share = 1.0 if self.examples is None else counts.examples / self.examples
        to_whole = torch.trunc if self.examples is None else torch.round
        whole = [
            to_whole((t.detach().cpu().double() * share).clamp(-self.largest, self.largest) * self.units)
            for _, t in sorted(delta.items())
        ]
        numbers = torch.cat([t.flatten() for t in whole]).to(self.dtype)
        loss = round(counts.loss * counts.examples * _LOSS_UNITS)
        plain = [counts.clients, counts.examples, counts.correct, counts.labels, counts.tokens, loss]
        return {NUMBERS: numbers, COUNTS: torch.tensor(plain, dtype=torch.int64)}

    def decode(self, total: Row, like: Row) -> tuple[Row, Counts]:
        """The mean change, weighted by p_k, and the counts of all.

        Args:
            total: The sum of what clients sent; integers of torch wrap around as the sum should.
            like: The parameters, for names, shapes and dtypes.

        Raises:
            ValueError: It is a sum of nobody, or of something else.
        """
        clients, examples, correct, labels, tokens, loss = total[COUNTS].tolist()
        names = sorted(like)
        numbers = total[NUMBERS].to(self.dtype)
        if clients <= 0 or examples <= 0 or numbers.numel() != sum(t.numel() for t in like.values()):
            raise ValueError("the sum is not one of this round's changes")
        shares = clients if self.examples is None else examples / self.examples
        mean = numbers.double() / (shares * self.units)
        pieces = mean.split([like[name].numel() for name in names])
        delta = {name: t.view_as(like[name]).to(like[name]) for name, t in zip(names, pieces, strict=True)}
        return delta, Counts(clients, examples, correct, labels, tokens, loss / _LOSS_UNITS / examples)

    def like(self, row: Row) -> Row:
        """A payload of the shapes that one for these parameters has."""
        size = sum(t.numel() for t in row.values())
        return {
            NUMBERS: torch.zeros(size, dtype=self.dtype),
            COUNTS: torch.zeros(6, dtype=torch.int64),
        }


def summed(payloads: Sequence[Row]) -> Row:
    """The sum of payloads, modulo what their numbers wrap around at."""
    total = {name: torch.zeros_like(t) for name, t in payloads[0].items()}
    for payload in payloads:
        for name, t in total.items():
            t += payload[name]
    return total
