"""Who gets which examples: each function returns the indices of every client.

A partition is disjoint and leaves nothing out. It depends on its arguments alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from fedloom.config import UserError
from fedloom.data.randomness import numpy_rng


def iid(examples: int, clients: int, seed: int) -> list[Int64[np.ndarray, " _share"]]:
    """Deals the examples out at random, in shares that differ by one example at most.

    Args:
        examples: How many examples there are.
        clients: How many clients share them.
        seed: The seed of the run.

    Returns:
        For each client the indices of its examples, in [0, examples).

    Raises:
        UserError: If a client would get nothing.
    """
    if clients < 1:
        raise UserError(f"client_num is {clients}; it must be at least 1.")
    if clients > examples:
        raise UserError(
            f"client_num is {clients}, but there are only {examples} training examples and every client "
            f"needs at least one. Use --client_num {examples} or less, or more data."
        )
    order = numpy_rng(seed, "partition").permutation(examples)
    return np.array_split(order, clients)
