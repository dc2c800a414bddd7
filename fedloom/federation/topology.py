"""Who mixes with whom in a round of decentralised training.

Static graphs have the same mixing matrix in every round, with Metropolis-Hastings weights unless a file gives
others. Two graphs vary: in each round peers meet in pairs, and a pair takes its mean.

    one_peer_exponential    in round t peer i meets i XOR 2^(t mod log2 N); N a power of two. This is the
                            one-peer exponential graph of Ying et al., 2021, arXiv:2110.13363, in its
                            hypercube form: theirs has i hear i + 2^(t mod log2 N) mod N, a matrix that is
                            doubly stochastic but not symmetric. Both are the exact mean after any log2 N
                            rounds in a row.
    random_pairs            a fresh random matching by (seed, round); of an odd number one peer stays alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError
from fedloom.federation.graph_file import read_graph
from fedloom.federation.graphs import (
    Edges,
    check_connected,
    fitting,
    is_power_of_two,
    named_edges,
    parse_name,
)
from fedloom.federation.matrix import RoundMixing, metropolis

DENSE_LIMIT = 2000
"""Peers up to which eigenvalues are computed: a few seconds, and 32 MB for the matrix."""


@dataclass(frozen=True, eq=False)
class Topology:
    """A graph of peers.

    Attributes:
        name: As the user typed it.
        peers: How many.
        static: The mixing of every round; None for a graph that varies.
        pairs: Who meets in a round, from (peers, seed, round); None for a static graph.
        exact_after: Rounds in a row after which all peers have the exact mean, where there is such a number.
        mean_gap: `spectral_gap` of a graph that varies.
    """

    name: str
    peers: int
    static: RoundMixing | None = None
    pairs: Callable[[int, int, int], Edges] | None = None
    exact_after: int | None = None
    mean_gap: float | None = None

    @property
    def varies(self) -> bool:
        """Whether links differ between rounds, apart from what drops out."""
        return self.static is None


def build_topology(name: str, peers: int, seed: int) -> Topology:
    """Make the graph of a name, see `graphs.named_edges`, `graph_file` and above.

    Args:
        name: `NAME`, `NAME:key=value` or `file:PATH`.
        peers: How many there are.
        seed: Of the run; decides which random graph it is.

    Raises:
        UserError: The name, its values, the file or the number of peers will not do, or the graph falls into
            parts.
    """
    kind, rest = parse_name(name)
    if peers < 2:
        raise UserError(f"num_clients: {peers} has no one to mix with; choose at least 2")
    if kind == "random_pairs":
        return Topology(name, peers, pairs=_random_pairs, mean_gap=_random_pairs_gap(peers))
    if kind == "one_peer_exponential":
        if not is_power_of_two(peers):
            raise UserError(f"topology: {kind}: {fitting(peers, is_power_of_two, 'a power of two')}")
        bits = peers.bit_length() - 1
        return Topology(name, peers, pairs=_one_peer_exponential, exact_after=bits, mean_gap=1 / bits)
    edges, weights = read_graph(rest, peers) if kind == "file" else (named_edges(name, peers, seed), None)
    check_connected(name, peers, edges)
    if weights is None:
        weights = metropolis(edges, peers)
    return Topology(name, peers, static=RoundMixing(edges, weights, np.ones(peers, dtype=bool)))


def mixing(
    topology: Topology,
    round_number: int,
    seed: int,
    drop_peer: float = 0.0,
    drop_link: float = 0.0,
    step: float = 1.0,
) -> RoundMixing:
    """The mixing matrix of a round, and who takes part.

    A link that drops out does so at both ends, and both keep its weight for themselves. A peer that drops out
    neither trains nor mixes: all its links are out, its row is that of the identity. With neither, the matrix
    is the graph's own. What drops out is a function of (seed, round), and whatever drops out at one
    probability does so at a higher one too.

    Args:
        topology: The graph.
        round_number: Which round, from 0.
        seed: Of the run.
        drop_peer: Probability that a peer drops out of this round, in [0, 1].
        drop_link: Probability that a link does, in [0, 1].
        step: γ, by which all links' weights are multiplied: (1 − γ) I + γ W in place of W.

    Raises:
        ValueError: A probability is out of range.
    """
    for what, probability in (("drop_peer", drop_peer), ("drop_link", drop_link)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{what} {probability}: must be a probability, from 0 to 1")
    whole = topology.static or _meeting(topology, round_number, seed)
    if step != 1:
        whole = RoundMixing(whole.edges, step * whole.weights, whole.active)
    if drop_peer == 0 and drop_link == 0:
        return whole
    active = numpy_rng(seed, "drop peer", round_number).random(topology.peers) >= drop_peer
    kept = numpy_rng(seed, "drop link", round_number).random(len(whole.edges)) >= drop_link
    kept &= active[whole.edges].all(axis=1)
    return RoundMixing(whole.edges[kept], whole.weights[kept], active)


def _meeting(topology: Topology, round_number: int, seed: int) -> RoundMixing:
    assert topology.pairs is not None, "a graph is static or has pairs"
    edges = topology.pairs(topology.peers, seed, round_number)
    return RoundMixing(edges, np.full(len(edges), 0.5), np.ones(topology.peers, dtype=bool))


def _one_peer_exponential(peers: int, seed: int, round_number: int) -> Edges:
    bit = 1 << round_number % (peers.bit_length() - 1)
    every = np.arange(peers)
    low = every[every & bit == 0]
    return np.stack([low, low | bit], axis=1)


def _random_pairs(peers: int, seed: int, round_number: int) -> Edges:
    order = numpy_rng(seed, "pairs", round_number).permutation(peers)
    pairs = np.sort(order[: peers // 2 * 2].reshape(-1, 2), axis=1)
    return pairs[np.argsort(pairs[:, 0])]


def _random_pairs_gap(peers: int) -> float:
    """Two given peers meet with probability 1 / (N - 1), or 1 / N of an odd N; the rest is algebra."""
    return peers / (2 * (peers - 1)) if peers % 2 == 0 else 0.5


def spectral_gap(topology: Topology) -> float | None:
    """1 − max(|λ_2|, |λ_N|) of the mixing matrix: 1 is the mean at once, near 0 is slow.

    A round takes the peers' distance from their mean, in the Euclidean norm, down to (1 − gap) of what it was
    or less.

    For a graph that varies it is the gap of the mean matrix, over the rounds that repeat
    (`one_peer_exponential`: 1 / log2 N) or over the draws (`random_pairs`: N / (2 (N − 1)), or 1/2 for an odd
    N). As W² = W for pairs, (1 − gap) then bounds the expected *square* of the distance. Moreover
    `one_peer_exponential` has the exact mean after log2 N rounds: the gap of the product of a period is 1.

    Returns:
        The gap, or None for a static graph of more than `DENSE_LIMIT` peers.
    """
    if topology.static is None:
        return topology.mean_gap
    if topology.peers > DENSE_LIMIT:
        return None
    rising = np.linalg.eigvalsh(topology.static.dense())
    return float(max(0.0, 1.0 - max(-rising[0], rising[-2])))


def bytes_per_round(bytes_per_adapter: int, directed_edges: int) -> int:
    """Bytes that cross the wire in a round, all peers together: each sends its adapter to each neighbour."""
    return bytes_per_adapter * directed_edges
