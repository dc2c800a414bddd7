"""User level: a round's sum of changes is told so that nobody can say whether a client was in it.

    DP-FedAvg            McMahan et al., 2018, arXiv:1710.06963
    adaptive clipping    Andrew et al., 2021, arXiv:1905.03871

With N clients, of whom each takes part with probability q by itself, and a bound C:

    S ← each client with probability q                    perhaps nobody: the round counts all the same
    Δ_k ← Δ_k · min(1, C / ‖Δ_k‖)                         at the client, and again at the server
    Δ ← (Σ_{k in S} Δ_k + z_Δ C · N(0, I)) / (q N)

One client more or less moves the sum by C at most. The denominator does not depend on who came, and clients
count alike, however many examples they have: both would tell something of them, and weights would have to be
bounded too. Adaptive clipping lets C follow the norms, so that a share γ of the changes is within it:

    b_k ← 1 if ‖Δ_k‖ ≤ C before it is clipped, else 0
    b ← ½ + (Σ_{k in S} (b_k − ½) + σ_b · N(0, 1)) / (q N)
    C ← C · exp(−η (b − γ))

A client moves Σ (b_k − ½) by ½. Both sums together are as private as one with noise z times its sensitivity
if z⁻² = z_Δ⁻² + (2 σ_b)⁻², from which z_Δ comes; z is what is accounted for. The paper takes σ_b = q N / 20,
and has many clients in a round; of few z_Δ would become large or none, so that σ_b is 2.5 z at least, where
z_Δ is 1.02 z. With z = 0 and C infinite it is the unweighted mean of those who came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedloom.client.private import noised
from fedloom.data.randomness import secret_normal, secret_uniform
from fedloom.model.bank import Row

UNCLIPPED = "is within the clip"
"""The name in a payload of b_k, a scalar of uint8; there where clipping is adaptive."""

_RATE = 0.2
"""η, as Andrew et al. recommend."""


@dataclass(frozen=True)
class UserPrivacy:
    """How a run hides its clients; see the module.

    Attributes:
        clip: C of the first round; infinite: changes stay as they are.
        quantile: γ; None: C stays as it is.
        noise: z, nan at clients, which add none.
        clients: N.
        per_round: q N.
        key: Of the noise and of who takes part; None where nobody asks for either, as at clients.
    """

    clip: float
    quantile: float | None
    noise: float
    clients: int
    per_round: int
    key: int | None = None

    @property
    def count_noise(self) -> float:
        """σ_b."""
        return 0.0 if self.noise == 0 else max(self.per_round / 20, 2.5 * self.noise)

    @property
    def sum_noise(self) -> float:
        """z_Δ."""
        if self.quantile is None or self.noise == 0:
            return self.noise
        return (self.noise**-2 - (2 * self.count_noise) ** -2) ** -0.5

    def sample(self, round_: int) -> list[int]:
        """Who takes part in a round, in ascending order."""
        assert self.key is not None
        drawn = secret_uniform(self.key, "take part", round_, size=self.clients)
        return (drawn < self.per_round / self.clients).nonzero()[0].tolist()

    def noised(self, total: Row, clip: float, round_: int) -> Row:
        """Σ Δ_k with its noise.

        Args:
            total: Σ Δ_k, each within ``clip``.
            clip: C.
            round_: Which round.
        """
        if self.sum_noise == 0:
            return total
        assert self.key is not None
        return noised(total, self.sum_noise * clip, self.key, round_)

    def next_clip(self, clip: float, came: int, unclipped: int, round_: int) -> float:
        """C of the next round.

        Args:
            clip: C of this one.
            came: Of how many clients the sum is.
            unclipped: Σ b_k.
            round_: Which round.
        """
        if self.quantile is None:
            return clip
        assert self.key is not None
        noise = self.count_noise * float(secret_normal(self.key, "noise of the count", round_, size=1)[0])
        share = 0.5 + (unclipped - came / 2 + noise) / self.per_round
        return clip * math.exp(-_RATE * (share - self.quantile))


def clipped(row: Row, clip: float) -> tuple[Row, bool]:
    """A row cut to a Euclidean norm over all its parameters; and whether it was within it.

    Args:
        row: One client's change.
        clip: The largest norm; infinite leaves every row as it is.
    """
    if math.isinf(clip):
        return row, True
    squares = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in row.values()]
    norm = float(torch.linalg.vector_norm(torch.stack(squares))) if squares else 0.0
    # What is not finite is left out, whatever it is multiplied by.
    if norm <= clip or not math.isfinite(norm):
        return row, norm <= clip
    scale = clip / norm * (1 - 1e-6)  # rounding must not lift it above the bound again
    return {name: t * scale for name, t in row.items()}, False


def is_within(payload: Mapping[str, torch.Tensor]) -> bool:
    """b_k of a payload."""
    return UNCLIPPED in payload and bool(payload[UNCLIPPED])
