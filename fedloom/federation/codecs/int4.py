"""Four bits per number, rounded stochastically, with a scale for every block (QSGD in buckets: Alistarh et
al., 2017, arXiv:1610.02132).

For every block of numbers that follow each other, with s = max |x| / 7 and u uniform on [0, 1):

    q ← ⌊x / s + u⌋,   x̂ ← s q                                        q in −7 … 7, two of them in a byte

Blocks are small because a step is a seventh of the largest number in its block: one large number makes the
others of its block coarse, and no more. As `int8` it is unbiased, and what rounding loses comes with the
sender's next change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedloom.errors import UserError
from fedloom.federation.codecs import Codec, flattened, numbers_in, received, unflattened
from fedloom.federation.codecs.int8 import rounded
from fedloom.model.bank import Row

_PAIRS, _SCALES = "pairs", "scales"
_MOST, _MIDDLE = 7, 8


def int4(block: float = 64.0) -> Codec:
    """Pairs of numbers (uint8), and a float32 scale for each block.

    Args:
        block: Numbers in a block; the last may have fewer.

    Raises:
        UserError: It is no even number above 0.
    """
    size = int(block)
    if size != block or size < 2 or size % 2:
        raise UserError(
            f"compress: int4:{block:g} has no blocks of pairs; the number must be even, whole and at least "
            "2, as in int4:64"
        )

    def encode(row: Row, seed: int) -> Row:
        flat = flattened(row)
        blocks = F.pad(flat, (0, -len(flat) % size)).view(-1, size)
        scales = (blocks.abs().amax(1) / _MOST).float()
        steps = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).to(blocks)[:, None]
        numbers = rounded(steps, seed).clamp(-_MOST, _MOST).to(torch.int16).flatten() + _MIDDLE
        pairs = numbers[: 2 * _pairs(len(flat))].view(-1, 2)
        return {_PAIRS: (16 * pairs[:, 0] + pairs[:, 1]).to(torch.uint8), _SCALES: scales}

    def decode(payload: Row, like: Row) -> Row:
        count, any_of_it = numbers_in(like), next(iter(like.values()))
        pairs = received(payload, _PAIRS, (_pairs(count),), torch.uint8, like).to(torch.int16)
        scales = received(payload, _SCALES, (-(-count // size),), torch.float32, like).to(any_of_it)
        numbers = torch.stack([pairs // 16, pairs % 16], 1).flatten()[:count] - _MIDDLE
        return unflattened(numbers.to(any_of_it) * scales.repeat_interleave(size)[:count], like)

    return Codec(encode, decode, lossy=True)


def _pairs(count: int) -> int:
    """How many pairs so many numbers are; the last may be half empty."""
    return (count + 1) // 2
