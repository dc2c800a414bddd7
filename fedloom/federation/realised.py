"""Whether what peers came to, each by itself, fits together: the matrix, or whom each took in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float64

_EXACT = 1e-12


def realised_faults(matrix: Float64[np.ndarray, "peers peers"]) -> list[str]:
    """What is wrong with a mixing matrix whose rows come from different places; nothing, if it is right.

    It must be symmetric to the bit, as both ends of an edge compute its weight from the same numbers, have no
    negative entry, and rows and columns that sum to 1 within 1e-12.

    Args:
        matrix: Row i is what peer i did.
    """
    faults = []
    for i, j in np.argwhere(np.triu(matrix != matrix.T)).tolist():
        there, back = matrix[i, j], matrix[j, i]
        faults.append(f"peer {i + 1} gave peer {j + 1} the weight {there:g}, which gave it {back:g}")
    for i, j in np.argwhere(~(matrix >= -_EXACT)).tolist():
        faults.append(f"row {i + 1}, column {j + 1} is {matrix[i, j]:g}, which is not at least 0")
    for what, axis in (("row", 1), ("column", 0)):
        for i in np.flatnonzero(~(np.abs(matrix.sum(axis) - 1) <= _EXACT)).tolist():
            faults.append(f"{what} {i + 1} sums to {matrix.sum(axis)[i]:.9g}, not to 1")
    return faults


def neighbourhood_faults(
    rows: Mapping[int, Mapping[int, float]],
    promised: Collection[tuple[int, int]],
    in_doubt: Collection[tuple[int, int]],
) -> list[str]:
    """What is wrong with the neighbourhoods of a round that was not the mean; nothing, if all is right.

    There is no matrix, and no mean that is kept. But who takes in a neighbour's row must have agreed on it
    with that neighbour, which then takes in the other row too, unless it did not know yet, or was killed.

    Args:
        rows: Of every peer that mixed, the weights that its aggregator was given, itself among them.
        promised: ``(peer, neighbour)`` where the peer has agreed that the edge counts.
        in_doubt: The same, where it did not know whether the edge counts when it mixed.
    """
    faults = []
    for peer, row in sorted(rows.items()):
        if not all(weight >= -_EXACT for weight in row.values()):
            faults.append(f"peer {peer} has a weight that is not at least 0")
        if not abs(sum(row.values()) - 1) <= _EXACT:
            faults.append(f"the weights of peer {peer} sum to {sum(row.values()):.9g}, not to 1")
        for other in sorted(row.keys() - {peer}):
            back = rows.get(other, {}).get(peer)
            if back is not None and back != row[other]:
                faults.append(
                    f"peer {peer} gave peer {other} the weight {row[other]:g}, which gave it {back:g}"
                )
            elif (other, peer) not in promised:
                faults.append(f"peer {peer} took in peer {other}'s row, and peer {other} did not agree to it")
            elif back is None and other in rows and (other, peer) not in in_doubt:
                faults.append(
                    f"peer {peer} took in peer {other}'s row, which did not take in that of peer {peer}"
                )
    return faults
