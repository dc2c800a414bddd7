"""Which examples a client's next batches hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.data.randomness import numpy_rng


def draw_batches(
    indices: Sequence[int] | np.ndarray, *, seed: int, client: int, start: int, count: int, batch_size: int
) -> list[list[int]]:
    """Returns the batches [start, start + count) of the client's endless sequence.

    The client passes over its data again and again, each pass in a fresh order; the last batch of a pass
    holds what is left and may be short. Nothing is remembered between calls: ``start`` is all the state
    there is, so a resumed run draws what the unbroken one would have drawn.

    Args:
        indices: The client's examples; all of the same client's calls must give the same.
        seed: The seed of the run.
        client: The client's number, so that clients draw independently of each other.
        start: The batches that the client has drawn before.
        count: How many batches to draw; 0 draws none.
        batch_size: Examples per batch.

    Raises:
        ValueError: If there is nothing to draw from, or a number is out of range.
    """
    if len(indices) == 0:
        raise ValueError(f"client {client} has no examples to draw from")
    if batch_size < 1 or start < 0 or count < 0:
        raise ValueError(f"need batch_size >= 1, start >= 0, count >= 0; got {batch_size}, {start}, {count}")
    per_pass = -(-len(indices) // batch_size)
    orders: dict[int, np.ndarray] = {}
    batches = []
    for number in range(start, start + count):
        epoch, batch = divmod(number, per_pass)
        if epoch not in orders:
            orders[epoch] = numpy_rng(seed, "order", client, epoch).permutation(len(indices))
        places = orders[epoch][batch * batch_size : (batch + 1) * batch_size]
        batches.append([int(indices[place]) for place in places])
    return batches
