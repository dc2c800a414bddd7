"""The mixing matrix of a round, W in x_i ← Σ_j W_ij x_j.

W is symmetric, has no negative entry, and its rows sum to 1 (so do its columns), hence mixing leaves the mean
over peers as it was, whoever is linked to whom, and whatever drops out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fedloom.federation.graphs import Edges

if TYPE_CHECKING:
    import torch

Edge = tuple[int, int]
"""A directed edge: who sends, and who hears; peers from 0."""

_EXACT = 1e-12
_DENSE_FROM = 0.06
"""Share of entries above which a dense product is faster: one CPU core, 100 and 1,000 peers, float32."""


@dataclass(frozen=True, eq=False)
class RoundMixing:
    """The mixing matrix of one round, as its links.

    A link is there once for both directions, and the diagonal is what the links leave: a link that is taken
    out gives its weight back to both ends.

    Attributes:
        edges: The links.
        weights: W_ij of each link.
        active: Whether a peer trains and mixes in this round. One that does not has no links.
    """

    edges: Edges
    weights: Float64[np.ndarray, " edges"]
    active: Bool[np.ndarray, " peers"]

    @property
    def peers(self) -> int:
        """How many peers there are, active or not."""
        return len(self.active)

    @property
    def degrees(self) -> Int64[np.ndarray, " peers"]:
        """How many neighbours each peer has in this round."""
        return np.bincount(self.edges.ravel(), minlength=self.peers)

    @property
    def directed_edges(self) -> int:
        """How many adapters cross the wire: one in each direction of a link."""
        return 2 * len(self.edges)

    @property
    def own(self) -> Float64[np.ndarray, " peers"]:
        """The diagonal: the weight that each peer keeps for itself."""
        given = np.bincount(self.edges.ravel(), np.repeat(self.weights, 2), minlength=self.peers)
        # A peer that keeps nothing may come out at -1e-17.
        return np.maximum(0.0, 1.0 - given)

    @cached_property
    def entries(
        self,
    ) -> tuple[Int64[np.ndarray, " entries"], Int64[np.ndarray, " entries"], Float64[np.ndarray, " entries"]]:
        """Row, column and weight of every entry, by row, then by column; the diagonal is always there."""
        low, high = self.edges.T
        every = np.arange(self.peers)
        rows, columns = np.concatenate([low, high, every]), np.concatenate([high, low, every])
        order = np.argsort(rows * self.peers + columns)
        return rows[order], columns[order], np.concatenate([self.weights, self.weights, self.own])[order]

    def dense(self) -> Float64[np.ndarray, "peers peers"]:
        """The matrix with its zeros."""
        rows, columns, weights = self.entries
        matrix = np.zeros((self.peers, self.peers))
        matrix[rows, columns] = weights
        return matrix

    def heard_by(self, peers: range) -> Int64[np.ndarray, " heard"]:
        """Whose adapters some peers need for their new ones, in ascending order; they are among them."""
        rows, columns, _ = self.entries
        return np.unique(columns[(rows >= peers.start) & (rows < peers.stop)])

    def neighbourhoods(self, peers: range) -> dict[int, dict[int, float]]:
        """For each of some peers, those that it hears and their weights, itself among them; ascending."""
        found: dict[int, dict[int, float]] = {peer: {} for peer in peers}
        rows, columns, weights = self.entries
        theirs = (rows >= peers.start) & (rows < peers.stop) & ((weights > 0) | (rows == columns))
        for row, column, weight in zip(rows[theirs], columns[theirs], weights[theirs], strict=True):
            found[int(row)][int(column)] = float(weight)
        return found

    def rows(self, peers: range) -> torch.Tensor:
        """The rows of some peers, as a tensor ``[peers, those that they hear]``; see `heard_by`."""
        import torch

        if len(peers) == self.peers:
            return self.tensor()
        rows, columns, weights = self.entries
        theirs = (rows >= peers.start) & (rows < peers.stop)
        heard = self.heard_by(peers)
        matrix = np.zeros((len(peers), len(heard)))
        matrix[rows[theirs] - peers.start, np.searchsorted(heard, columns[theirs])] = weights[theirs]
        return torch.from_numpy(matrix)

    def tensor(self) -> torch.Tensor:
        """The matrix as a tensor ``[peers, peers]``, float64, CPU: `sparse`, or dense where that is faster.

        A dense product does some fifteen times as many operations per second.
        """
        import torch

        if len(self.edges) * 2 + self.peers > _DENSE_FROM * self.peers**2:
            return torch.from_numpy(self.dense())
        return self.sparse()

    def sparse(self) -> torch.Tensor:
        """The matrix as a sparse CSR tensor ``[peers, peers]``, float64, on the CPU."""
        import torch

        rows, columns, weights = self.entries
        starts = np.searchsorted(rows, np.arange(self.peers + 1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(columns),
                torch.from_numpy(weights),
                size=(self.peers, self.peers),
                check_invariants=True,
            )


def metropolis(edges: Edges, peers: int) -> Float64[np.ndarray, " edges"]:
    """Metropolis-Hastings weights, which peers can agree on from their neighbours' degrees alone.

        W_ij ← 1 / (1 + max(d_i, d_j)) for linked i and j;    W_ii ← 1 − Σ_j W_ij

    On the complete graph every weight is 1 / N. Source: Xiao, Boyd and Lall, 2005, "A scheme for robust
    distributed sensor fusion based on average consensus".
    """
    low, high = np.bincount(edges.ravel(), minlength=peers)[edges].T
    return edge_weight(low, high)


def edge_weight(degree: Any, other_degree: Any) -> Any:
    """The Metropolis weight of an edge, or of several, from the degrees of its ends."""
    return 1.0 / (1.0 + np.maximum(degree, other_degree))


def check_mixing(mixing: RoundMixing) -> None:
    """Judge the matrix that is about to mix: symmetric, not negative, rows that sum to 1 within 1e-12.

    Looks at the entries themselves, in time that grows with their number, so that it can run in every round.

    Raises:
        ValueError: It is not so, or a peer that takes no part is mixed with others; and which peer.
    """
    rows, columns, weights = mixing.entries
    _refuse(~(weights >= 0), rows, "has a weight that is not at least 0")
    mirrored = np.argsort(columns * mixing.peers + rows)
    differs = (columns[mirrored] != rows) | (rows[mirrored] != columns) | (weights[mirrored] != weights)
    _refuse(differs, rows, "has a weight that its neighbour does not have for it")
    sums = np.bincount(rows, weights, minlength=mixing.peers)
    every = np.arange(mixing.peers)
    _refuse(~(np.abs(sums - 1) <= _EXACT), every, "has weights that do not sum to 1")
    _refuse((rows != columns) & ~mixing.active[rows], rows, "takes no part, but has a link")


def _refuse(wrong: Bool[np.ndarray, " n"], peers: Int64[np.ndarray, " n"], fault: str) -> None:
    if wrong.any():
        raise ValueError(f"mixing matrix: peer {peers[np.argmax(wrong)] + 1} {fault}")
