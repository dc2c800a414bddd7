"""Dropout whose masks are a function of (seed, round, client, batch), whoever shares the pass.

Masks are drawn batch by batch, each batch from a generator of its own. A batch is the unit that
packing never splits, so a mask depends neither on the wave's size nor on the neighbours in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from fedloom.data.randomness import numpy_rng, torch_rng
from fedloom.model.layout import NotPerClient

_LEVELS = 1 << 16


class Draws:
    """Dropout masks for one pass.

    Args:
        seed: The run's seed.
        keys: For each run of tokens that lie end to end, what identifies it: (round, client, batch, ...).
        tokens: Tokens of each run, pads left out.
        real: Where the real tokens lie among all tokens of a padded pass; None when there are no pads.
        device: Where the masks are needed.
        rows: Tokens of a padded pass, pads included; None where there are no pads.
    """

    def __init__(
        self,
        seed: int,
        keys: Sequence[tuple[int, ...]],
        tokens: Sequence[int],
        real: Tensor | None,
        device: torch.device,
        rows: int | None = None,
    ):
        self.generators = [_generator(seed, key, device) for key in keys]
        self.tokens, self.real, self.device = tuple(tokens), real, device
        self.rows = sum(tokens) if rows is None else rows

    def for_labels(self, labels: Sequence[int]) -> Draws:
        """The same generators, for the head, which sees ``labels[i]`` positions of run i."""
        head = copy(self)
        head.tokens, head.real, head.rows = tuple(labels), None, sum(labels)
        return head

    def without_pads(self) -> Draws:
        """The same generators, for the real tokens of a padded pass end to end."""
        short = copy(self)
        short.real, short.rows = None, sum(self.tokens)
        return short

    def keep(self, x: Tensor, probability: float) -> Tensor:
        """Factors for ``x`` ``[tokens, features]``: 0 with ``probability``, else 1 / (1 - probability).

        Raises:
            NotPerClient: ``x`` is not the pass's tokens, and several batches share the pass.
        """
        if x.shape[0] != self.rows and len(self.tokens) > 1:
            raise NotPerClient(f"dropout of {list(x.shape)}, which are not the pass's {self.rows} tokens")
        if x.shape[0] != self.rows:
            # A batch by itself, and something in it that is not its tokens: relative positions, for one.
            return self.flat([x.numel()], probability, x.dtype).view_as(x)
        kept = self.flat([n * x.shape[1] for n in self.tokens], probability, x.dtype).view(-1, x.shape[1])
        if self.real is None:
            return kept
        return torch.ones_like(x).index_copy_(0, self.real, kept)

    def flat(self, counts: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
        """``sum(counts)`` factors, ``counts[i]`` of them from run i's generator.

        Sixteen random bits decide about one number (four decisions a draw: the generator is the
        slowest part), so the probability is rounded to a multiple of 1/65536 and the factor is that
        of the rounded one: the mean is exact.
        """
        threshold = round(probability * _LEVELS)
        keep = torch.empty(sum(counts), dtype=dtype, device=self.device)
        for piece, generator in zip(keep.split(list(counts)), self.generators, strict=True):
            bits = _words(generator, -(-len(piece) // 4), self.device).view(torch.int16)
            torch.ge(bits[: len(piece)], threshold - _LEVELS // 2, out=piece)
        return keep.mul_(_LEVELS / (_LEVELS - threshold))


def _generator(
    seed: int, key: tuple[int, ...], device: torch.device
) -> torch.Generator | np.random.BitGenerator:
    """On a CPU NumPy's, which is twice as fast as torch's there."""
    if device.type == "cpu":
        return numpy_rng(seed, "dropout", *key).bit_generator
    return torch_rng(seed, "dropout", *key, device=device)


def _words(generator: torch.Generator | np.random.BitGenerator, count: int, device: torch.device) -> Tensor:
    """``count`` times 64 random bits."""
    if isinstance(generator, torch.Generator):
        words = torch.empty(count, dtype=torch.int64, device=device)
        return words.random_(-(1 << 63), None, generator=generator)
    return torch.from_numpy(generator.random_raw(count).view(np.int64))
