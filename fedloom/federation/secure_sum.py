"""The sum of the clients' changes in whole numbers, which masks can hide: all that a server needs of a round.

    Bonawitz et al., 2017, doi:10.1145/3133956.3133982

A client sends its change as whole numbers modulo 2³², to which masks can be added that cancel in the sum
of all (`runtimes.flower.masks`). With n_k its examples, n as many as a client may have in a round,
p_k = n_k / n, and K clients in a round:

    x_k ← ⌊2^f · clip(p_k Δ_k, ±R) + u_k⌋ mod 2³²           f the largest with K · R · 2^f ≤ 2³¹ − K
    Δ ← 2^−f · (Σ_k x_k mod 2³²) / Σ_k p_k                  mod 2³² between −2³¹ and 2³¹

Sums are exact, so that a server that adds up what is masked finds what one process finds, to the bit. The
counts that metrics need (examples, tokens, the loss) are summed with it, modulo 2⁶⁴, since a client's own
tell something of it too. A number of a change beyond R is cut. With u_k uniform on [0, 1) rounding is up with
a probability that is the number's own fraction, so that the mean over many rounds is the change's, however
much smaller than a step of 2^−f that is; one round is off by less than a step for each client.
With int8 they are numbers modulo 2¹⁶, two bytes each, of which log₂ K bits are for the number of clients: up
to 127 have at least 127 steps from 0 to R each. They are steps of R, not of the change as int8's own are: of
50 clients one is R / 650 to R / 330, and R is to be near the largest number of a change.
Under user-level privacy clients count alike, p_k = 1, and what is sent is within the clip: what rounding
lifts beyond it is drawn again (conditional rounding, Kairouz et al., 2021, arXiv:2102.06387), shortened,
since of a change at the clip nearly every draw is beyond; the paper allows for a larger norm in its noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedloom.data.randomness import derive_seed
from fedloom.federation.codecs.int8 import rounded
from fedloom.model.bank import Row

NUMBERS, COUNTS = "numbers", "counts"
"""The names in a payload: int32 or int16, of all parameters by name, and int64."""

_LOSS_UNITS = 2**24

_DRAWS = 8
"""Of a change that rounding lifts beyond the clip; then it is cut towards 0, which it seldom comes to."""

log = logging.getLogger(__name__)


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
        warned: The warning of R, once it has been given in this run.
    """

    largest: float
    clients: int
    examples: int | None = None
    bits: Literal[16, 32] = 32
    warned: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def units(self) -> float:
        """2^f, how many whole numbers there are to one."""
        most = 2 ** (self.bits - 1) - self.clients
        return 2.0 ** math.floor(math.log2(most / (self.clients * self.largest)))

    @property
    def dtype(self) -> torch.dtype:
        """Of numbers on the wire."""
        return torch.int32 if self.bits == 32 else torch.int16

    def encode(self, delta: Row, counts: Counts, seed: int, clip: float = math.inf) -> Row:
        """What a client sends: its change, and its counts.

        Args:
            delta: Its change.
            counts: What it trained on.
            seed: What rounding depends on; another in each round and of each client.
            clip: Largest norm of what is sent, which the change is within; infinite: any.

        Raises:
            ValueError: The change or the loss is not finite.
        """
        if not all(bool(t.isfinite().all()) for t in delta.values()) or not math.isfinite(counts.loss):
            raise ValueError("its numbers are not finite")
        share = 1.0 if self.examples is None else counts.examples / self.examples
        flat = torch.cat([t.detach().cpu().double().flatten() for _, t in sorted(delta.items())]) * share
        steps = flat.clamp(-self.largest, self.largest) * self.units
        whole = _within(steps, seed, clip * self.units)
        self._say_if_lost(flat, whole)
        numbers = whole.to(self.dtype)
        loss = round(counts.loss * counts.examples * _LOSS_UNITS)
        plain = [counts.clients, counts.examples, counts.correct, counts.labels, counts.tokens, loss]
        return {NUMBERS: numbers, COUNTS: torch.tensor(plain, dtype=torch.int64)}

    def _say_if_lost(self, numbers: Tensor, whole: Tensor) -> None:
        """Tell once if R is so large that most of a change is less than a step."""
        changed = numbers != 0
        lost, most = int((changed & (whole == 0)).sum()), int(changed.sum())
        if self.warned or 2 * lost <= most:
            return
        largest = float(numbers.abs().max())
        near = f"choose a number near the largest, such as --secure_aggregation {2 * largest:.1g}"
        self.warned.append(
            f"secure_aggregation: {self.largest:g} has steps of {1 / self.units:.2g}, at which {lost} of the "
            f"{most} numbers that changed at a client became 0; its largest is {largest:.2g}: the sum is "
            "right in the mean of many rounds and noisy in each; "
            + (near if self.bits == 32 or 4 * largest < self.largest else "choose --compress none")
        )
        log.warning(self.warned[-1])

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


def _within(steps: Tensor, seed: int, most: float) -> Tensor:
    """Whole numbers of a norm of at most `most`, whose mean over all seeds is the steps, or part of them."""
    for draw in range(_DRAWS):
        whole = rounded(steps, derive_seed(seed, "rounding", draw))
        norm = float(torch.linalg.vector_norm(whole))
        if norm <= most:
            return whole
        # Squared: of numbers below a step it is the square of the norm that goes with their length.
        steps = steps * (most / norm) ** 2
    return steps.trunc()


def summed(payloads: Sequence[Row]) -> Row:
    """The sum of payloads, modulo what their numbers wrap around at."""
    total = {name: torch.zeros_like(t) for name, t in payloads[0].items()}
    for payload in payloads:
        for name, t in total.items():
            t += payload[name]
    return total
