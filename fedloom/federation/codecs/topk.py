"""The largest numbers alone (sparsified SGD with memory: Stich et al., 2018, arXiv:1809.07599).

Of all n numbers of a change the ⌈share · n⌉ of the largest magnitude are sent, with their places. What is
left out is not lost: `codecs.feedback` adds it to the sender's next change. With a share of 1 nothing is.
"""

from __future__ import annotations

import math

import torch

from fedloom.federation.codecs import Codec, check_share, flattened, numbers_in, scattered
from fedloom.model.bank import Row

_PLACES, _VALUES = "places", "values"


def topk(share: float = 0.01) -> Codec:
    """Places (int32) and values of the largest numbers.

    Args:
        share: Of the numbers; at least one is sent.

    Raises:
        UserError: It is no share.
    """
    check_share("topk", share)

    def encode(row: Row, seed: int) -> Row:
        flat = flattened(row)
        places = flat.abs().topk(math.ceil(share * len(flat)), sorted=False).indices.sort().values
        return {_PLACES: places.int(), _VALUES: flat[places]}

    def decode(payload: Row, like: Row) -> Row:
        places, values = payload[_PLACES], payload[_VALUES]
        total, dtype = numbers_in(like), next(iter(like.values())).dtype
        if places.ndim != 1 or places.shape != values.shape or places.dtype != torch.int32:
            raise ValueError("places and values are not two lists of one length")
        if len(places) > math.ceil(share * total) or values.dtype != dtype:
            raise ValueError(
                f"{len(places)} values of {values.dtype}, where at most {share:g} of {total} may be"
            )
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < total:
            raise ValueError(f"a place outside of the {total} numbers")
        return scattered(places.long(), values, like)

    return Codec(encode, decode, lossy=share < 1)
