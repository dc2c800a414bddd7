"""Dropout whose masks are a function of (seed, round, client, batch), whoever shares the pass.

Masks are drawn batch by batch, each batch from a stream of its own. A batch is the unit that
packing never splits, so a mask depends neither on the wave's size nor on the neighbours in it.

On a CPU a stream is a generator of NumPy's. On a GPU, where every operation has to be launched, all streams
are drawn at once: a number is a hash of its stream and its place in it (SplitMix64: Steele, Lea & Flood,
2014, doi:10.1145/2714064.2660195), so that 64 clients take as many operations as four. The masks are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor

from fedloom.data.randomness import derive_seed, numpy_rng
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
        self.streams = _streams(seed, keys, device)
        self.tokens, self.real, self.device = tuple(tokens), real, device
        self.rows = sum(tokens) if rows is None else rows

    def for_labels(self, labels: Sequence[int]) -> Draws:
        """The same streams, for the head, which sees ``labels[i]`` positions of run i."""
        head = copy(self)
        head.tokens, head.real, head.rows = tuple(labels), None, sum(labels)
        return head

    def without_pads(self) -> Draws:
        """The same streams, for the real tokens of a padded pass end to end."""
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
        """``sum(counts)`` factors, ``counts[i]`` of them from run i's stream.

        Sixteen random bits decide about one number (four decisions a draw: drawing is the
        slowest part), so the probability is rounded to a multiple of 1/65536 and the factor is that
        of the rounded one: the mean is exact.
        """
        threshold = round(probability * _LEVELS)
        keep = torch.empty(sum(counts), dtype=dtype, device=self.device)
        for piece, bits in self.streams.draw(keep, counts):
            torch.ge(bits, threshold - _LEVELS // 2, out=piece)
        return keep.mul_(_LEVELS / (_LEVELS - threshold))


def _streams(seed: int, keys: Sequence[tuple[int, ...]], device: torch.device) -> _Generators | _Hashes:
    if device.type == "cpu":
        return _Generators([numpy_rng(seed, "dropout", *key).bit_generator for key in keys])
    return _Hashes([derive_seed(seed, "dropout", *key) for key in keys], device)


@dataclass
class _Generators:
    """A generator for each run."""

    of_run: Sequence[np.random.BitGenerator]

    def draw(self, whole: Tensor, counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of ``whole`` with 16 bits for each of their numbers, drawn where they are asked for."""
        for piece, generator in zip(whole.split(list(counts)), self.of_run, strict=True):
            words = torch.from_numpy(generator.random_raw(-(-len(piece) // 4)).view(np.int64))
            yield piece, words.view(torch.int16)[: len(piece)]


class _Hashes:
    """A seed for each run, from which its draws follow.

    Args:
        seeds: One for each run, below 2^63.
        device: Where bits are needed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.seeds: Int64[Tensor, " runs"] = torch.tensor(list(seeds), dtype=torch.long).to(device)
        self.drawn = torch.zeros_like(self.seeds)  # words of each run; every layer goes on where one stopped

    def draw(
        self, whole: Tensor, counts: Sequence[int]
    ) -> Iterator[tuple[Tensor, Int16[Tensor, " numbers"]]]:
        """As `_Generators.draw`, in one part."""
        device = self.seeds.device
        numbers = torch.tensor(list(counts), dtype=torch.long)
        words = (numbers + 3) // 4
        run, before = _runs(words, device)
        place = torch.arange(len(run), device=device) - before[run] + self.drawn[run]
        self.drawn = self.drawn + words.to(device)
        bits = _split_mix(self.seeds[run] + place * _GOLDEN).view(torch.int16)
        if len(bits) > len(whole):  # the last word of a run has bits to spare
            its_run, numbers_before = _runs(numbers, device)
            bits = bits[torch.arange(len(whole), device=device) + (4 * before - numbers_before)[its_run]]
        yield whole, bits


def _runs(
    counts: Int64[Tensor, " runs"], device: torch.device
) -> tuple[Int64[Tensor, " items"], Int64[Tensor, " runs"]]:
    """Of items that lie run by run: each one's run, and how many items lie before each run."""
    run = torch.repeat_interleave(counts.to(device), output_size=int(counts.sum()))
    return run, (counts.cumsum(0) - counts).to(device)


def _split_mix(x: Int64[Tensor, " words"]) -> Int64[Tensor, " words"]:
    """SplitMix64's mixing: 64 bits that look random, of 64 that need not. Products wrap."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, 31)


def _shifted(x: Int64[Tensor, " words"], by: int) -> Int64[Tensor, " words"]:
    """``x >> by`` of unsigned numbers; torch shifts the sign along."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """The same 64 bits as torch has them."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
