"""Randomness as a function of (seed, purpose, ids), never of a global generator.

Whoever needs chance says what for and for whom (``numpy_rng(seed, "order", client, epoch)``). The result
then cannot depend on what else drew before, on the number of processes, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
import json
from operator import index
from typing import SupportsIndex

import numpy as np


def derive_seed(seed: SupportsIndex, purpose: str, *ids: SupportsIndex) -> int:
    """Returns a seed of 63 bits that belongs to exactly this (seed, purpose, ids).

    The same on every platform and in every process: a cryptographic hash, not Python's salted one. 63 bits,
    so that it fits the signed 64-bit integers of other libraries.

    Args:
        seed: The seed of the run.
        purpose: What the randomness is for.
        *ids: Whom it is for: client, round, pass, ...
    """
    # JSON keeps ("a", 1, 12) and ("a", 11, 2) apart, which joining the digits would not.
    key = json.dumps([index(seed), purpose, *map(index, ids)]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def secret_uniform(key: SupportsIndex, purpose: str, *ids: SupportsIndex, size: int) -> np.ndarray:
    """Returns ``size`` numbers uniform on (0, 1) that nobody can tell without the key.

    The generators of NumPy and torch are no secret: torch's takes 32 bits of a seed, and some thousand
    numbers of either give the others away. These come from SHAKE-256 (FIPS 202), an extendable-output hash.

    Args:
        key: A secret of 256 bits; a smaller one is as secret as it is long.
        purpose: What the randomness is for.
        *ids: Whom it is for.
        size: How many.
    """
    stream = hashlib.shake_256(json.dumps([index(key), purpose, *map(index, ids)]).encode())
    words = np.frombuffer(stream.digest(8 * size), dtype="<u8")
    return ((words >> 11) + 0.5) * 2.0**-53  # never 0, whose logarithm is none


def secret_normal(key: SupportsIndex, purpose: str, *ids: SupportsIndex, size: int) -> np.ndarray:
    """Returns ``size`` standard normal numbers, by Box and Muller (1958); see `secret_uniform`."""
    radius, angle = secret_uniform(key, purpose, *ids, size=2 * -(-size // 2)).reshape(2, -1)
    length, angle = np.sqrt(-2.0 * np.log(radius)), 2.0 * np.pi * angle
    return np.concatenate([length * np.cos(angle), length * np.sin(angle)])[:size]


def numpy_rng(seed: SupportsIndex, purpose: str, *ids: SupportsIndex) -> np.random.Generator:
    """Returns a fresh NumPy generator for this (seed, purpose, ids); see `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, *ids))
