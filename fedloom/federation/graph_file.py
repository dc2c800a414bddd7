"""A graph from a file: who is linked to whom, or the mixing matrix itself.

Text; numbers with blanks or commas between, `#` begins a comment. N is the number of peers.

    edge list           a line per link, two peers, numbered from 1; direction and repetition do not matter
    adjacency matrix    N lines of N numbers, each 0 or 1, symmetric; the diagonal does not matter
    mixing matrix       N lines of N other numbers, symmetric, none negative, every line's sum 1

Of two lines of two numbers for 2 peers, which could be either, a matrix is made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from fedloom.data.text_files import read_text
from fedloom.errors import UserError, shown
from fedloom.federation.graphs import Edges, sorted_edges

TOLERANCE = 1e-6
"""How far a written matrix may be from symmetric, and its rows' sums from 1: numbers in files are rounded."""


def read_graph(path: str | Path, peers: int) -> tuple[Edges, Float64[np.ndarray, " edges"] | None]:
    """Read a graph from a file, see above.

    The weights of a mixing matrix are those above its diagonal; what rounding in the file left over, or took
    too much of, the diagonal makes up for.

    Args:
        path: Of the file.
        peers: How many there must be, N.

    Returns:
        The links, and their weights where the file gives a mixing matrix.

    Raises:
        UserError: The file cannot be read, or is not a graph of so many peers; the message has the line.
    """
    rows = _rows(path)
    widths = {len(numbers) for numbers in rows.values()}
    if widths == {peers} and len(rows) == peers:
        return _from_matrix(path, np.array(list(rows.values())))
    if widths == {2}:
        return _from_links(path, rows, peers), None
    shape = f"{len(rows)} lines of {' or '.join(map(str, sorted(widths)))} numbers"
    raise UserError(
        f"topology: {path} has {shape}, but num_clients is {peers}; a matrix needs {peers} lines of {peers} "
        "numbers, an edge list lines of 2"
    )


def _rows(path: str | Path) -> dict[int, list[float]]:
    """The numbers of each line that has any, by the number of the line."""
    try:
        lines = read_text(Path(path)).split("\n")
    except UserError as error:
        raise UserError(f"topology: {error} Give the path of a graph.") from None
    rows = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise UserError(
                f"topology: {path} line {number}: {shown(line.strip(), 40)!r} is not a row of numbers; write "
                "two peers, or a row of a matrix"
            ) from None
        if numbers:
            rows[number] = numbers
    if not rows:
        raise UserError(f"topology: {path} is empty; write a link in every line, or a matrix")
    return rows


def _from_links(path: str | Path, rows: dict[int, list[float]], peers: int) -> Edges:
    for number, (one, other) in rows.items():
        for peer in (one, other):
            if peer not in range(1, peers + 1):
                raise UserError(
                    f"topology: {path} line {number}: {peer:g} is not a peer; peers have the numbers 1 to "
                    f"{peers} (num_clients)"
                )
        if one == other:
            raise UserError(
                f"topology: {path} line {number}: peer {one:g} is linked to itself; leave the line out, "
                "every peer keeps a share of its own anyway"
            )
    return sorted_edges((int(one) - 1, int(other) - 1) for one, other in rows.values())


def _from_matrix(
    path: str | Path, matrix: Float64[np.ndarray, "peers peers"]
) -> tuple[Edges, Float64[np.ndarray, " edges"] | None]:
    is_adjacency = bool(np.isin(matrix, (0, 1)).all())
    bad = ~np.isfinite(matrix) | (matrix < 0)
    if bad.any():
        i, j = np.argwhere(bad)[0].tolist()
        raise UserError(
            f"topology: {path}: {_entry(matrix, i, j)}, but a weight must be a number of at least 0"
        )
    uneven = np.abs(matrix - matrix.T) > TOLERANCE
    if uneven.any():
        i, j = np.argwhere(uneven)[0].tolist()
        raise UserError(
            f"topology: {path}: {_entry(matrix, i, j)}, but {_entry(matrix, j, i)}; a matrix must be "
            "symmetric, so make them equal"
        )
    edges = np.argwhere(np.triu(matrix, 1) > 0)
    if is_adjacency:
        return edges, None
    sums = matrix.sum(axis=1)
    wrong = np.abs(sums - 1) > TOLERANCE
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(
            f"topology: {path}: the weights of peer {i + 1} sum to {sums[i]:.9g}; each row of a mixing "
            "matrix must sum to 1 (a matrix of 0 and 1 alone is read as links)"
        )
    weights = matrix[edges[:, 0], edges[:, 1]]
    # Rounding must not leave a diagonal below 0.
    beside = np.bincount(edges.ravel(), np.repeat(weights, 2), minlength=len(matrix))
    return edges, weights / max(1.0, beside.max())


def _entry(matrix: Float64[np.ndarray, "peers peers"], i: int, j: int) -> str:
    return f"row {i + 1}, column {j + 1} is {matrix[i, j]:g}"
