"""A round without a server: peers on a graph train, then average with their neighbours.

    Decentralised SGD    Lian et al., 2017, arXiv:1705.09056
    DFL-LoRA             freezes LoRA's A, the same for all peers, and averages B

With W the round's mixing matrix, symmetric and doubly stochastic, and w_i the adapter of peer i:

    for every peer i, in parallel:   w_i ← local training from w_i on the peer's own data
    for every peer i:                w_i ← Σ_j W_ij w_j

Averaging the factors of B_i A_i is not averaging the products, unless all A_i are one A: then
Σ_j W_ij (B_j A) = (Σ_j W_ij B_j) A. That is DFL-LoRA: A stands outside the bank, nobody trains or sends it.

With W uniform over all peers, and plain SGD, a round is one of FedAvg with all clients of equal size. With W
the identity every peer is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedloom.client.optimisers import State
from fedloom.federation.matrix import RoundMixing, check_mixing
from fedloom.federation.topology import bytes_per_round
from fedloom.model.bank import AdapterBank, bytes_of, largest_usable


@dataclass(frozen=True)
class PeerState:
    """All that the peers know between rounds.

    Attributes:
        round: Rounds done.
        bank: Their adapters, a row per peer; with DFL-LoRA without A. Where peers are dealt over processes,
            these are the peers of this one.
        optimiser: Their optimisers' state, which lasts across rounds and is never mixed.
    """

    round: int
    bank: AdapterBank
    optimiser: State


@dataclass(frozen=True)
class Trained:
    """What local training made of all peers.

    Attributes:
        bank, optimiser: As in `PeerState`.
        loss: Mean training loss of each peer; nan for one that did not train.
        correct, labels, tokens: Counts while training.
    """

    bank: AdapterBank
    optimiser: State
    loss: Float[Tensor, " peers"]
    correct: Int[Tensor, " peers"]
    labels: Int[Tensor, " peers"]
    tokens: Int[Tensor, " peers"]


Train = Callable[[PeerState, Bool[Tensor, " peers"]], Trained]
"""``(state, who trains) -> what came of it``: where peers run is the runtime's business. A peer that does not
train keeps its row and its optimiser's state."""


Fetch = Callable[[AdapterBank, RoundMixing], AdapterBank]
"""``(rows of the peers that are here, the matrix) -> rows of all whom they hear``, by their numbers."""


@dataclass(frozen=True)
class PeerReport:
    """What a round says of itself.

    Attributes:
        trained: What local training made of the peers that are here, before mixing.
        active: Who took part, of all.
        left_out: Peers, of those that are here, whose loss, row or optimiser's state was not finite, or
            whose row is too large to be averaged; they go on from where they were.
        bytes_sent: Over all directed links of the round.
    """

    trained: Trained
    active: Bool[Tensor, " peers"]
    left_out: list[int]
    bytes_sent: int


def peer_round(
    state: PeerState,
    train: Train,
    mixing: RoundMixing,
    mixed: Collection[str],
    *,
    here: range | None = None,
    fetch: Fetch = lambda bank, mixing: bank,
) -> tuple[PeerState, PeerReport]:
    """One round of decentralised training.

    Args:
        state: Where the peers are.
        train: Trains them.
        mixing: The round's matrix, and who takes part; it is checked.
        mixed: Names of the parameters that are sent and averaged; the others stay with their peer.
        here: The peers of ``state``; None is all.
        fetch: Gets the rows of those whom they hear and who are elsewhere.

    Raises:
        ValueError: The matrix is not symmetric and doubly stochastic.
    """
    check_mixing(mixing)
    here = range(mixing.peers) if here is None else here
    active = torch.tensor(mixing.active)
    trained, left_out = _finite_only(state, train(state, active[here.start : here.stop]))
    bank = mix(trained.bank, mixing.rows(here), mixed, lambda own: fetch(own, mixing))
    sent = bytes_of({name: t[0] for name, t in bank.tensors.items() if name in mixed})
    left_out = [here.start + peer for peer in left_out]
    report = PeerReport(trained, active, left_out, bytes_per_round(sent, mixing.directed_edges))
    return PeerState(state.round + 1, bank, trained.optimiser), report


def mix(
    bank: AdapterBank,
    mixing: Float[Tensor, "peers heard"],
    mixed: Collection[str],
    heard: Callable[[AdapterBank], AdapterBank] = lambda own: own,
) -> AdapterBank:
    """``W @ bank`` for the parameters named in ``mixed``: one product over the first axis.

    The mean over all peers stays what it was, because the columns of W sum to one.

    Args:
        bank: The peers' rows.
        mixing: Their rows of W.
        mixed: Names of the parameters that are averaged.
        heard: Makes the rows of those whom they hear, W's columns, of their own; by default they are these.
    """
    own = AdapterBank({name: t for name, t in bank.tensors.items() if name in mixed})
    return AdapterBank(bank.tensors | (mixing @ heard(own)).tensors)


def _finite_only(before: PeerState, trained: Trained) -> tuple[Trained, list[int]]:
    """Put back, whole, every peer of which something is not finite, or too large to be averaged.

    Rows whose numbers are no larger than `largest_usable` have a mean that is not larger either, whatever the
    graph: one peer that diverges ruins nobody else.
    """
    finite = ~trained.loss.isinf()
    for t in trained.bank.tensors.values():
        finite &= (t.flatten(1).abs() <= largest_usable(t.dtype)).all(1).cpu()
    for t in trained.optimiser.values():
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
    counts = (trained.loss, trained.correct, trained.labels, trained.tokens)
    return Trained(bank, optimiser, *counts), (~finite).nonzero()[:, 0].tolist()
