"""A round without a server: peers on a graph train, then average with their neighbours.

    Decentralised SGD    Lian et al., 2017, arXiv:1705.09056
    DFL-LoRA             freezes LoRA's A, the same for all peers, and averages B
    CHOCO-SGD            Koloskova et al., 2019, arXiv:1902.00340; see `federation.choco`

and every other row of `methods.METHODS` that has a meaning on a graph. With W the round's mixing matrix,
symmetric and doubly stochastic, and w_i the adapter of peer i:

    for every peer i, in parallel:   w_i ← local training from w_i on the peer's own data
    for every peer i:                w_i ← Σ_j W_ij w_j

Averaging the factors of B_i A_i is not averaging the products, unless all A_i are one A: then
Σ_j W_ij (B_j A) = (Σ_j W_ij B_j) A. That is DFL-LoRA: A stands outside the bank, nobody trains or sends it.

The mean is one product with W. With any other aggregator a peer's updates are its neighbours' differences and
its own, which is 0, weighted by its row of W:

    for every peer i:                w_i ← w_i + aggregate({w_j − w_i : W_ij > 0}, weights W_ij)

With W uniform over all peers, the mean, and plain SGD, a round is one of FedAvg with all clients of equal
size. With W the identity every peer is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import AGGREGATOR, Algorithm, part_of, with_prefix
from fedloom.federation.choco import Estimates, payloads_of
from fedloom.federation.matrix import RoundMixing, check_mixing
from fedloom.federation.neighbours import aggregate_each, differences_among
from fedloom.federation.topology import bytes_per_round
from fedloom.federation.transport import ALL_LOCAL, PeerTransport
from fedloom.model.bank import AdapterBank, bytes_of, largest_usable


@dataclass(frozen=True)
class PeerState:
    """All that the peers know between rounds.

    Attributes:
        round: Rounds done.
        bank: Their adapters, a row per peer; with DFL-LoRA without A. Where peers are dealt over processes,
            these are the peers of this one.
        optimiser: Their optimisers' state, which lasts across rounds and is never mixed.
        estimates: What neighbours know of each other, where what they send is compressed.
        memory: What the peers' rule remembers, a row per peer: its own, and what is sent and mixed with the
            adapters; and what their aggregator does. See `algorithm.first_peer_memory`.
    """

    round: int
    bank: AdapterBank
    optimiser: State
    estimates: Estimates = field(default_factory=Estimates)
    memory: State = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What local training made of all peers.

    Attributes:
        bank, optimiser, memory: As in `PeerState`.
        loss: Mean training loss of each peer; nan for one that did not train.
        correct, labels, tokens: Counts while training.
    """

    bank: AdapterBank
    optimiser: State
    loss: Float[Tensor, " peers"]
    correct: Int[Tensor, " peers"]
    labels: Int[Tensor, " peers"]
    tokens: Int[Tensor, " peers"]
    memory: State = field(default_factory=dict)


Train = Callable[[PeerState, Bool[Tensor, " peers"]], Trained]
"""``(state, who trains) -> what came of it``: where peers run is the runtime's business. A peer that does not
train keeps its row, its optimiser's state and its memory."""


@dataclass(frozen=True)
class PeerReport:
    """What a round says of itself.

    Attributes:
        trained: What local training made of the peers that are here, before mixing.
        active: Who took part, of all.
        left_out: Peers, of those that are here, whose loss, row, optimiser's state or memory was not finite,
            or whose row is too large to be averaged, before mixing or after it; they go on from where they
            were.
        bytes_sent: By the peers that are here, to all their neighbours.
    """

    trained: Trained
    active: Bool[Tensor, " peers"]
    left_out: list[int]
    bytes_sent: int


PLAIN = Algorithm(client_lr=1.0)
"""Plain gossip: the mean of what neighbours have. Without a server there is no use for client_lr."""


def peer_round(
    state: PeerState,
    train: Train,
    mixing: RoundMixing,
    mixed: Collection[str],
    algorithm: Algorithm = PLAIN,
    *,
    seed: int = 0,
    transport: PeerTransport = ALL_LOCAL,
    narrower: Sequence[tuple[RoundMixing, Collection[str]]] = (),
) -> tuple[PeerState, PeerReport]:
    """One round of decentralised training.

    Args:
        state: Where the peers are.
        train: Trains them.
        mixing: The round's matrix, and who takes part; it is checked.
        mixed: Names of what is sent and averaged, of the adapter and of the memory; the rest stays with its
            peer.
        algorithm: Its aggregator and its codec.
        seed: Of the run; random choices of the codec depend on it, the round and the edge.
        transport: Which peers those of ``state`` are, and how they reach others.
        narrower: Parameters that cross a part of the links only, with the matrix of these; for the mean
            alone. The others have the round's.

    Raises:
        ValueError: A matrix is not symmetric and doubly stochastic.
    """
    for matrix in (mixing, *(shared for shared, _ in narrower)):
        check_mixing(matrix)
    local = range(mixing.peers) if transport.peers is None else transport.peers
    active = torch.tensor(mixing.active)
    trained, left_out = _finite_only(state, train(state, active[local.start : local.stop]))
    bank, estimates, lost = trained.bank, state.estimates, list[int]()
    everything = bank.tensors | trained.memory
    shared = AdapterBank({name: t for name, t in everything.items() if name in mixed})
    aggregated = partial(
        aggregate_each,
        aggregator=algorithm.aggregator,
        mixing=mixing,
        local=local,
        remembered=part_of(trained.memory, AGGREGATOR),
        seed=seed,
        round_=state.round,
    )
    remembered: State = {}
    if algorithm.codec.lossy:
        payloads = payloads_of(
            shared, estimates, mixing, algorithm.codec, local=local, seed=seed, round_=state.round
        )
        sent = sum(map(bytes_of, payloads.values()))
        estimates = estimates.advanced(transport.deliver(payloads, mixing), algorithm.codec)
        shared, remembered, lost = aggregated(shared, differences=estimates.differences)
    elif algorithm.aggregator is weighted_mean:
        sent = 0
        for matrix, names in _by_matrix(mixing, narrower, shared.tensors):
            part = AdapterBank({name: shared.tensors[name] for name in names})
            sent += _bytes_sent(algorithm, part, matrix, local)
            shared = mix(shared, matrix.rows(local), names, heard_over(transport, matrix))
    else:
        sent = _bytes_sent(algorithm, shared, mixing, local)
        heard = partial(differences_among, transport.fetch(shared, mixing), mixing.heard_by(local).tolist())
        shared, remembered, lost = aggregated(shared, differences=heard)
    left_out = sorted({*lost, *(local.start + peer for peer in left_out)})
    report = PeerReport(trained, active, left_out, sent)
    everything |= shared.tensors | with_prefix(AGGREGATOR, remembered)
    bank = AdapterBank({name: everything[name] for name in bank.tensors})
    memory = {name: everything[name] for name in trained.memory}
    return PeerState(state.round + 1, bank, trained.optimiser, estimates, memory), report


def _by_matrix(
    mixing: RoundMixing, narrower: Sequence[tuple[RoundMixing, Collection[str]]], sent: Collection[str]
) -> list[tuple[RoundMixing, list[str]]]:
    """Which matrix averages which of the parameters that are sent."""
    apart = {name for _, names in narrower for name in names}
    groups = [(mixing, [name for name in sent if name not in apart])]
    groups += [(matrix, [name for name in sent if name in names]) for matrix, names in narrower]
    return [(matrix, names) for matrix, names in groups if names]


def heard_over(transport: PeerTransport, mixing: RoundMixing) -> Callable[[AdapterBank], AdapterBank]:
    """What makes of the rows of the peers that are here those of all whom they hear."""
    return lambda rows: transport.fetch(rows, mixing)


def _bytes_sent(algorithm: Algorithm, bank: AdapterBank, mixing: RoundMixing, local: range) -> int:
    """Bytes of the rows of a bank that peers send over a round's links."""
    links = int(mixing.degrees[local.start : local.stop].sum())
    return bytes_per_round(bytes_of(algorithm.codec.encode(bank.row(0), 0)), links)


def mix(
    bank: AdapterBank,
    mixing: Float[Tensor, "peers heard"],
    mixed: Collection[str],
    heard: Callable[[AdapterBank], AdapterBank] = lambda shared: shared,
) -> AdapterBank:
    """``W @ bank`` for the parameters named in ``mixed``: one product over the first axis.

    The mean over all peers stays what it was, because the columns of W sum to one.

    Args:
        bank: The peers' rows.
        mixing: Their rows of W.
        mixed: Names of the parameters that are averaged.
        heard: Makes the rows of those whom they hear, W's columns, of their own; by default they are these.
    """
    shared = AdapterBank({name: t for name, t in bank.tensors.items() if name in mixed})
    return AdapterBank(bank.tensors | (mixing @ heard(shared)).tensors)


def _finite_only(before: PeerState, trained: Trained) -> tuple[Trained, list[int]]:
    """Put back, whole, every peer of which something is not finite, or too large to be averaged.

    Rows whose numbers are no larger than `largest_usable` have a mean that is not larger either, whatever the
    graph: one peer that diverges ruins nobody else.
    """
    finite = ~trained.loss.isinf()
    for t in trained.bank.tensors.values():
        finite &= (t.flatten(1).abs() <= largest_usable(t.dtype)).all(1).cpu()
    for t in (*trained.optimiser.values(), *trained.memory.values()):
        finite &= t.reshape(len(t), -1).isfinite().all(1).cpu()
    # A peer that did not train has no loss; one that did has a number.
    finite &= ~(trained.loss.isnan() & (trained.labels > 0))
    if bool(finite.all()):
        return trained, []
    keep = finite.to(trained.bank.device)

    def choose(after: Tensor, was: Tensor) -> Tensor:
        return torch.where(keep.view(-1, *[1] * (after.ndim - 1)), after, was)

    bank = trained.bank.map(choose, before.bank)
    optimiser = {key: choose(t, before.optimiser[key]) for key, t in trained.optimiser.items()}
    memory = {key: choose(t, before.memory[key]) for key, t in trained.memory.items()}
    counts = (trained.loss, trained.correct, trained.labels, trained.tokens)
    return Trained(bank, optimiser, *counts, memory), (~finite).nonzero()[:, 0].tolist()
