"""One bit per number: its sign, with a scale for every tensor (EF-signSGD: Karimireddy et al., 2019,
arXiv:1901.09847).

    x̂ ← (‖x‖₁ / d) · sign(x)                                         of a tensor of d numbers; sign(0) is 1

What is lost, most of it, comes with the sender's next change (`codecs.feedback`): without that it need not
converge at all, which is the paper's point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedloom.federation.codecs import Codec, flattened, numbers_in, received, unflattened
from fedloom.model.bank import Row

_SIGNS, _SCALES = "signs", "scales"


def sign() -> Codec:
    """Eight signs in a byte (uint8), and a float32 scale for each tensor."""
    return Codec(_encode, _decode, lossy=True)


def _encode(row: Row, seed: int) -> Row:
    flat = flattened(row)
    bits = F.pad((flat >= 0).to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    means = [row[name].abs().mean() if row[name].numel() else row[name].new_zeros(()) for name in sorted(row)]
    return {_SIGNS: (bits << _places(bits)).sum(1, dtype=torch.uint8), _SCALES: torch.stack(means).float()}


def _decode(payload: Row, like: Row) -> Row:
    count, any_of_it = numbers_in(like), next(iter(like.values()))
    signs = received(payload, _SIGNS, (-(-count // 8),), torch.uint8, like)
    scales = received(payload, _SCALES, (len(like),), torch.float32, like).to(any_of_it)
    bits = (signs[:, None] >> _places(signs)) & 1  # [bytes, 8]
    sizes = torch.tensor([like[name].numel() for name in sorted(like)], device=scales.device)
    return unflattened((2 * bits.flatten()[:count].to(any_of_it) - 1) * scales.repeat_interleave(sizes), like)


def _places(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
