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

from fedloom.federation.codecs import Codec
from fedloom.model.bank import Row

_SCALE = "scale of "


def int8() -> Codec:
    """An int8 tensor and a float32 scale for each tensor."""
    return Codec(_encode, _decode, lossy=True)


def _encode(row: Row, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    payload = {}
    for name in sorted(row):
        t = row[name]
        scale = (t.abs().amax() / 127).float() if t.numel() else t.new_zeros((), dtype=torch.float32)
        # Drawn on the CPU, so that all machines draw alike.
        u = torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t)
        steps = t / scale.clamp(min=torch.finfo(torch.float32).tiny).to(t)
        payload[name] = (steps + u).floor().clamp(-127, 127).to(torch.int8)
        payload[_SCALE + name] = scale
    return payload


def _decode(payload: Row, like: Row) -> Row:
    row = {}
    for name, t in like.items():
        q, scale = payload[name], payload[_SCALE + name]
        if q.shape != t.shape or q.dtype != torch.int8 or scale.shape != () or scale.dtype != torch.float32:
            raise ValueError(f"{name} is not a tensor of int8 of the shape {tuple(t.shape)} with a scale")
        row[name] = q.to(t) * scale.to(t)
    return row
