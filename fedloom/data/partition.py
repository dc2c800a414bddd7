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


def with_server(
    examples: int, clients: int, server_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " _own"], list[Int64[np.ndarray, " _share"]]]:
    """Keeps some examples for the server and deals the others out to the clients, at random.

    Args:
        examples: How many examples there are.
        clients: How many clients share those that the server does not keep.
        server_examples: How many the server keeps.
        seed: The seed of the run.

    Returns:
        The server's examples, and for each client its own, as `iid` gives them.

    Raises:
        UserError: If a client would get nothing.
    """
    order = numpy_rng(seed, "server data").permutation(examples)
    own, rest = order[:server_examples], np.sort(order[server_examples:])
    if clients > len(rest):
        raise UserError(
            f"client_num is {clients}, but the server keeps {len(own)} of {examples} training examples and "
            f"every client needs at least one. Use --client_num {len(rest)} or less, or more data."
        )
    return own, [rest[share] for share in iid(len(rest), clients, seed)]
