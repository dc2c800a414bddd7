"""Every matrix of a change as a product of a low rank (PowerSGD: Vogels et al., 2019, arXiv:1905.13727).

For every matrix M ``[n, m]`` of the change, with Q ``[m, rank]`` drawn at random:

    four times:   P ← M Q, its columns made orthonormal;   Q ← Mᵀ P
    M̂ ← P Qᵀ                                                          P and Q are sent

which is near to the best product of that rank. The paper takes one such step and begins at the last round's
Q; a codec here has no memory of its own, so that it takes four, from a Q of the seed. What is lost comes with
the sender's next change. What is no matrix, or has no more numbers than its factors would, is sent as it is:
with a rank as large as the adapter's nothing is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.errors import UserError
from fedloom.federation.codecs import Codec, received
from fedloom.model.bank import Row

_FACTORS = "factors"
_STEPS = 4


def powersgd(rank: float = 1.0) -> Codec:
    """The factors of all matrices, one after another.

    Args:
        rank: Of the products.

    Raises:
        UserError: It is no whole number above 0.
    """
    r = int(rank)
    if r != rank or r < 1:
        raise UserError(
            f"compress: powersgd:{rank:g} is no rank; it must be a whole number of at least 1, as in "
            "powersgd:2"
        )

    def is_factored(t: Tensor) -> bool:
        return t.ndim == 2 and r * sum(t.shape) < t.numel()

    def encode(row: Row, seed: int) -> Row:
        # Drawn on the CPU, so that all machines draw alike.
        generator, pieces = torch.Generator().manual_seed(seed), list[Tensor]()
        for name in sorted(row):
            M = row[name]
            if not is_factored(M):
                pieces.append(M.flatten())
                continue
            Q = torch.randn(M.shape[1], r, generator=generator, dtype=torch.float64).to(M)
            P = M.new_zeros(len(M), r)
            for _ in range(_STEPS):
                P = torch.linalg.qr(M @ Q).Q
                Q = M.T @ P
            pieces += [P.flatten(), Q.flatten()]
        return {_FACTORS: torch.cat(pieces)}

    def decode(payload: Row, like: Row) -> Row:
        sizes = [
            [r * size for size in t.shape] if is_factored(t) else [t.numel()]
            for t in (like[name] for name in sorted(like))
        ]
        flat = [size for piece in sizes for size in piece]
        dtype = next(iter(like.values())).dtype
        pieces = iter(received(payload, _FACTORS, (sum(flat),), dtype, like).split(flat))
        row = {}
        for name in sorted(like):
            t = like[name]
            if is_factored(t):
                P, Q = next(pieces).view(len(t), r), next(pieces).view(t.shape[1], r)
                row[name] = P @ Q.T
            else:
                row[name] = next(pieces).view(t.shape)
        return row

    return Codec(encode, decode, lossy=True)
