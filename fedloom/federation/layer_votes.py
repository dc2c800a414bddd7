"""Gradient priority on a graph: peers agree with their neighbours on which layers they train and send.

FedGPL's server scores layers on data of its own (`federation.focus`). Without a server every peer does, on
what it has itself, and neighbours tell each other. With W the round's mixing matrix:

    for every peer i:    g_i ← ∇ loss(w_i; the first batch of its round)
                         s_il ← score(w_il, g_il) for every layer l               `priority.layer_scores`
                         v_i ← s_i / Σ_l s_il                                     v_i is sent
                         L_i ← the highest, and some of the lowest, of Σ_j W_ij v_j    L_i is sent
    for every peer i:    w_i ← local training of its layers in L_i; the others rest
    for every layer l:   W^l ← W on the links (i, j) where l is in L_i or in L_j; or in both
                         w_l ← W^l w_l

Votes are shares, so that no peer's vote weighs more because its loss is larger, and they are averaged as
adapters are: neighbours see nearly the same mean, and choose nearly the same layers. Both ends of a link know
both choices. A link that does not carry a layer gives that layer's weight back to both diagonals: every W^l
is symmetric and doubly stochastic, and the mean over peers of every parameter stays what it was. Parameters
outside of layers, such as a head, always train and cross every link.

With every layer selected nothing is voted on, and the round is that of `federation.peers`. Nor is it with
`random`, where all peers take the same layers, drawn by (seed, round), or with `in_turn`, where these are one
after another, in an order drawn anew for every pass over the layers. Where the others do not rest, peers
train all layers, and L_i is what they send: with `in_turn` every layer is averaged in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedloom.federation.algorithm import Algorithm
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.peers import PLAIN, PeerReport, PeerState, Trained, heard_over, mix, peer_round
from fedloom.federation.priority import Projection, layer_scores, names_in, select_layers
from fedloom.federation.transport import ALL_LOCAL, PeerTransport
from fedloom.model.bank import AdapterBank, Row

Gradients = Callable[[PeerState, Bool[Tensor, " peers"]], AdapterBank]
"""``(state, whose) -> gradients``, a row for each of those peers, on a batch of its own."""

Layers = TypeVar("Layers", Tensor, np.ndarray)
"""Which of all layers; a truth value for each."""

TrainLayers = Callable[[PeerState, Bool[Tensor, " peers"], Bool[Tensor, "peers layers"]], Trained]
"""As `peers.Train`, and which layers each peer trains."""


UNVOTED = ("random", "in_turn")
"""What of `LayerVotes.grad_eval` selects the same layers for all peers, without votes."""


@dataclass(frozen=True)
class LayerVotes:
    """How peers choose layers.

    Attributes:
        layers: The adapted projections of every layer that has some, by the layer's number.
        highest, lowest: How many layers with the highest and with the lowest votes a peer selects.
        grad_eval: One of `priority.GRAD_EVALS`, or one of `UNVOTED`.
        carried: Whether a link carries a layer that either end has selected, or only one that both have.
        rested: Whether layers that a peer has not selected rest; else they train, and are not sent.
        seed: The run's.
        frozen: What of the adapter nobody trains, the same for all, which has no gradient.
    """

    layers: Mapping[int, Sequence[Projection]]
    highest: int
    lowest: int
    grad_eval: str
    carried: Literal["either", "both"]
    rested: bool
    seed: int
    frozen: Row

    @cached_property
    def numbers(self) -> list[int]:
        """The layers' numbers, ascending: a column of votes and choices for each."""
        return sorted(self.layers)

    @cached_property
    def names(self) -> tuple[set[str], ...]:
        """The parameters of each layer."""
        return tuple(names_in([self.layers[number]]) for number in self.numbers)

    @property
    def voted(self) -> bool:
        """Whether there is anything to vote on."""
        return self.grad_eval not in UNVOTED and self.highest + self.lowest < len(self.layers)

    @property
    def bytes_per_link(self) -> int:
        """Bytes of a peer's vote, a float32 per layer, and of its choice, a bit per layer."""
        return 4 * len(self.layers) + -(-len(self.layers) // 8) if self.voted else 0

    def resting(self, chosen: Sequence[bool]) -> set[str]:
        """What does not train of a peer that has selected these layers."""
        resting = zip(self.names, chosen, strict=True) if self.rested else ()
        return {name for names, on in resting if not on for name in names}

    def vote(self, row: Row, gradient: Row) -> Float[Tensor, " layers"]:
        """A peer's vote: its scores as shares. One whose scores are of no use has no preference."""
        still = {name: torch.zeros_like(t) for name, t in self.frozen.items()}
        layers = [self.layers[number] for number in self.numbers]
        scores = layer_scores(self.frozen | row, still | gradient, layers, self.grad_eval)
        shares = scores / scores.sum()
        return shares if shares.isfinite().all() else torch.full_like(scores, 1 / len(scores))

    def chosen(self, votes: Float[Tensor, "peers layers"], round_: int) -> Bool[Tensor, "peers layers"]:
        """The layers that each peer selects by the mean of its own vote and its neighbours'."""
        policy = self.grad_eval if self.grad_eval in UNVOTED else "priority"
        picked = [
            select_layers(
                own,
                highest=self.highest,
                lowest=self.lowest,
                policy=policy,
                seed=self.seed,
                round_number=round_,
            )
            for own in votes.cpu()
        ]
        columns = range(votes.shape[1])
        return torch.tensor([[column in own for column in columns] for own in picked]).view(votes.shape)

    def carries(self, one: Layers, other: Layers) -> Layers:
        """The layers that a link carries, of those that either end has selected."""
        return one | other if self.carried == "either" else one & other

    def by_layer(
        self, mixing: RoundMixing, chosen: Bool[np.ndarray, "heard layers"], heard: Sequence[int]
    ) -> list[tuple[RoundMixing, set[str]]]:
        """W^l and the parameters of every layer l, as far as some peers need it.

        Args:
            mixing: W.
            chosen: What is known of who has selected which layers.
            heard: Whose choices these are, ascending: those peers, and all whom they hear.
        """
        known = np.zeros((mixing.peers, len(self.layers)), dtype=bool)
        known[heard] = chosen
        carries = self.carries(*known[mixing.edges.T])  # [links, layers]
        return [
            (replace(mixing, edges=mixing.edges[on], weights=mixing.weights[on]), names)
            for names, on in zip(self.names, carries.T, strict=True)
        ]


@dataclass(frozen=True)
class VoteReport:
    """What a round says of its votes, of the peers that are here.

    Attributes:
        votes: Each peer's own; none where nothing was voted on.
        chosen: The layers that each has selected; none where it did not take part.
    """

    votes: Float[Tensor, "peers layers"] | None
    chosen: Bool[Tensor, "peers layers"]


def voted_round(
    state: PeerState,
    train: TrainLayers,
    gradients: Gradients,
    mixing: RoundMixing,
    mixed: Collection[str],
    votes: LayerVotes,
    algorithm: Algorithm = PLAIN,
    *,
    seed: int = 0,
    transport: PeerTransport = ALL_LOCAL,
) -> tuple[PeerState, PeerReport, VoteReport]:
    """One round in which peers train and send the layers that they and their neighbours voted for.

    Args:
        state: Where the peers are.
        train: Trains some layers of each.
        gradients: Computes the gradients that votes are made of.
        mixing: As in `peer_round`.
        mixed: Names of what is sent and averaged where every layer is selected.
        votes: How layers are chosen.
        algorithm: As in `peer_round`; of codecs and aggregators only those that leave plain gossip.
        seed: As in `peer_round`.
        transport: As in `peer_round`.
    """
    local = range(mixing.peers) if transport.peers is None else transport.peers
    active = torch.tensor(mixing.active)[local.start : local.stop]
    device, shape = state.bank.device, (len(local), len(votes.numbers))
    cast, mean = None, torch.zeros(shape)
    if votes.voted:
        cast = torch.zeros(shape)
        bank = gradients(state, active)
        for row, peer in enumerate(active.nonzero()[:, 0].tolist()):
            cast[peer] = votes.vote(state.bank.row(peer), bank.row(row))
        sent = AdapterBank({"votes": cast.to(device)})
        mean = mix(sent, mixing.rows(local), {"votes"}, heard_over(transport, mixing)).tensors["votes"]
    chosen = votes.chosen(mean, state.round) & active[:, None]
    theirs = transport.fetch(AdapterBank({"chosen": chosen.to(device, torch.uint8)}), mixing).tensors[
        "chosen"
    ]
    by_layer = votes.by_layer(mixing, theirs.bool().cpu().numpy(), mixing.heard_by(local).tolist())
    after, report = peer_round(
        state,
        partial(_trained, train, chosen),
        mixing,
        mixed,
        algorithm,
        seed=seed,
        transport=transport,
        narrower=by_layer,
    )
    links = int(mixing.degrees[local.start : local.stop].sum())
    report = replace(report, bytes_sent=report.bytes_sent + votes.bytes_per_link * links)
    return after, report, VoteReport(cast, chosen)


def _trained(
    train: TrainLayers, chosen: Bool[Tensor, "peers layers"], state: PeerState, who: Bool[Tensor, " peers"]
) -> Trained:
    return train(state, who, chosen)
