"""Eight bits per number, rounded stochastically (QSGD: Alistarh et al., 2017, arXiv:1610.02132; FedPAQ:
Reisizadeh et al., 2020, arXiv:1909.13014).

For every tensor, with s = max |x| / 127 and u uniform on [0, 1):

    q ← ⌊x / s + u⌋,   x̂ ← s q

E[x̂] = x, because x / s is rounded up with a probability that is its own fraction. A number is off by less
than s. The papers scale by the Euclidean norm, and forget what rounding loses; here it comes with the
sender's next change, as of every codec (`codecs.feedback`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.federation.codecs import Codec, flattened, numbers_in, received, unflattened
from fedloom.model.bank import Row

_NUMBERS, _SCALES = "numbers", "scales"
_MOST = 127


def int8() -> Codec:
    """All numbers (int8), and a float32 scale for each tensor."""
    return Codec(_encode, _decode, lossy=True)


def _encode(row: Row, seed: int) -> Row:
    largest = [
        row[name].abs().amax() if row[name].numel() else row[name].new_zeros(()) for name in sorted(row)
    ]
    scales = (torch.stack(largest) / _MOST).float()
    steps = flattened(row) / _of_each_number(scales, row).clamp(min=torch.finfo(torch.float32).tiny)
    return {_NUMBERS: rounded(steps, seed).clamp(-_MOST, _MOST).to(torch.int8), _SCALES: scales}


def _decode(payload: Row, like: Row) -> Row:
    numbers = received(payload, _NUMBERS, (numbers_in(like),), torch.int8, like)
    scales = received(payload, _SCALES, (len(like),), torch.float32, like)
    of_each = _of_each_number(scales, like)
    return unflattened(numbers.to(of_each) * of_each, like)


def _of_each_number(scales: Tensor, like: Row) -> Tensor:
    counts = torch.tensor([like[name].numel() for name in sorted(like)], device=scales.device)
    return scales.to(next(iter(like.values())).dtype).repeat_interleave(counts)


def rounded(t: Tensor, seed: int) -> Tensor:
    """Whole numbers whose mean over all seeds is t."""
    # Drawn on the CPU, so that all machines draw alike.
    generator = torch.Generator().manual_seed(seed)
    return (t + torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t)).floor()
