"""Whether the matrix that peers came to, each by itself, is one that preserves their mean."""

from __future__ import annotations

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
