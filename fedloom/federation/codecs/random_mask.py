"""Some of the numbers, at places that both ends draw (random masks: Konečný et al., 2016, arXiv:1610.05492).

Of all n numbers of a change ⌈share · n⌉ are sent, at places that are drawn anew for every payload. The places
are a function of a seed, which is sent in their stead: a number costs 4 bytes here, and 8 with `topk`. Which
numbers are sent does not depend on what they are. The paper's subsampled updates are scaled up so as to be
right in the mean; here what is left out comes with the sender's next change (`codecs.feedback`), and nothing
is scaled. With a share of 1 nothing is lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedloom.data.randomness import numpy_rng
from fedloom.federation.codecs import Codec, check_share, flattened, numbers_in, received, scattered
from fedloom.model.bank import Row

_SEED, _VALUES = "seed", "values"


def random_mask(share: float = 0.1) -> Codec:
    """A seed (int64), and the values at its places.

    Args:
        share: Of the numbers; at least one is sent.

    Raises:
        UserError: It is no share.
    """
    check_share("random_mask", share)

    def places(seed: int, numbers: int) -> Tensor:
        drawn = numpy_rng(seed, "mask").permutation(numbers)[: math.ceil(share * numbers)]
        return torch.from_numpy(drawn).sort().values

    def encode(row: Row, seed: int) -> Row:
        flat = flattened(row)
        values = flat[places(seed, len(flat)).to(flat.device)]
        return {_SEED: torch.tensor(seed, dtype=torch.int64), _VALUES: values}

    def decode(payload: Row, like: Row) -> Row:
        count, dtype = numbers_in(like), next(iter(like.values())).dtype
        seed = int(received(payload, _SEED, (), torch.int64, like))
        if seed < 0:
            raise ValueError(f"the seed {seed} is negative")
        values = received(payload, _VALUES, (math.ceil(share * count),), dtype, like)
        return scattered(places(seed, count), values, like)

    return Codec(encode, decode, lossy=share < 1)
