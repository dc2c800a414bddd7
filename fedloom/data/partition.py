"""Who gets which examples: each function returns the indices of every client.

A partition is disjoint and leaves nothing out. It depends on its arguments alone. Even ones are here, uneven
ones in `fedloom.data.skew`; `partition` chooses.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int64

from fedloom.data.randomness import numpy_rng
from fedloom.data.skew import Shares, by_field, dirichlet, quantity, shards
from fedloom.errors import UserError
from fedloom.options.partition import Kind


def partition(
    kind: Kind,
    labels: Sequence[str],
    clients: int,
    *,
    seed: int,
    alpha: float = 0.5,
    min_size: int = 1,
    labels_per_client: int = 2,
    values: Sequence[Hashable] | None = None,
    option: str = "num_clients",
) -> Shares:
    """Divides examples among clients.

    Args:
        kind: "iid": at random and evenly; "dirichlet": uneven in labels; "quantity": uneven in size;
            "shards": a few labels each; "by_field": the examples of one value stay together.
        labels: The examples' labels, "" where one has none.
        clients: How many clients share them.
        seed: The seed of the run; "by_field" draws nothing.
        alpha: Of "dirichlet" and "quantity": the smaller, the more uneven.
        min_size: The fewest examples that a client may have.
        labels_per_client: Of "shards".
        values: Of "by_field": the examples' values.
        option: The option that gave `clients`, for messages.

    Returns:
        For each client the indices of its examples, in ascending order.

    Raises:
        UserError: If the kind needs labels and there are none, or no such partition is possible.
        ValueError: If the kind is "by_field" and there are no values.
    """
    if kind in ("dirichlet", "shards") and not any(labels):
        raise UserError(
            f"partition is {kind}, which goes by the examples' labels, and this data has none. Use "
            "--partition quantity (clients of uneven size) or --partition iid."
        )
    if kind == "dirichlet":
        return dirichlet(labels, clients, alpha, min_size, seed, option)
    if kind == "quantity":
        return quantity(len(labels), clients, alpha, min_size, seed, option)
    if kind == "iid":
        shares = iid(len(labels), clients, seed, option)
        return _of_size([np.sort(share) for share in shares], min_size, kind)
    if kind == "shards":
        return _of_size(shards(labels, clients, labels_per_client, seed, option), min_size, kind)
    if values is None:
        raise ValueError("a partition by field needs the examples' values")
    return _of_size(by_field(values, clients, option), min_size, kind)


def _of_size(shares: Shares, min_size: int, kind: str) -> Shares:
    """Returns the shares where each is large enough."""
    smallest = min(map(len, shares))
    if smallest < min_size:
        raise UserError(
            f"min_size is {min_size}, but partition {kind} gives the smallest of {len(shares)} clients "
            f"{smallest}. Use --min_size {smallest} or less, or fewer clients."
        )
    return shares


def iid(
    examples: int, clients: int, seed: int, option: str = "client_num"
) -> list[Int64[np.ndarray, " _share"]]:
    """Deals the examples out at random, in shares that differ by one example at most.

    Args:
        examples: How many examples there are.
        clients: How many clients share them.
        seed: The seed of the run.
        option: The option that gave `clients`, for messages.

    Returns:
        For each client the indices of its examples, in [0, examples).

    Raises:
        UserError: If a client would get nothing.
    """
    if clients < 1:
        raise UserError(f"{option} is {clients}; it must be at least 1.")
    if clients > examples:
        raise UserError(
            f"{option} is {clients}, but there are only {examples} training examples and every client "
            f"needs at least one. Use --{option} {examples} or less, or more data."
        )
    order = numpy_rng(seed, "partition").permutation(examples)
    return np.array_split(order, clients)


def for_server(
    examples: int, clients: int, server_examples: int, seed: int
) -> tuple[Int64[np.ndarray, " _own"], Int64[np.ndarray, " _rest"]]:
    """Draws the examples that the server keeps.

    Args:
        examples: How many examples there are.
        clients: How many clients share those that the server does not keep.
        server_examples: How many the server keeps.
        seed: The seed of the run.

    Returns:
        The server's examples, in the order that they were drawn in; those of the clients, in ascending order.

    Raises:
        UserError: If a client would get nothing.
    """
    order = numpy_rng(seed, "server data").permutation(examples)
    kept, rest = order[:server_examples], np.sort(order[server_examples:])
    if clients > len(rest):
        raise UserError(
            f"client_num is {clients}, but the server keeps {len(kept)} of {examples} training examples and "
            f"every client needs at least one. Use --client_num {len(rest)} or less, or more data."
        )
    return kept, rest
