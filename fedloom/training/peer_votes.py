"""The layers of a real peer's round, which it and its neighbours vote on; see `federation.layer_votes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fedloom.federation.peers import PeerState
from fedloom.runtimes.libp2p.messages import choice, chosen_of
from fedloom.runtimes.libp2p.node import Node
from fedloom.runtimes.libp2p.polls import vote, vote_of
from fedloom.training.graph_parts import PeerParts
from fedloom.training.graph_rounds import first_gradients

_ALONE = torch.ones(1, dtype=torch.bool)


@dataclass(frozen=True)
class Selected:
    """The layers of a round.

    Attributes:
        chosen: Those that this peer trains; None: all.
        carried: Those that each neighbour's edge carries, as messages say them; None: all.
        row: What of it goes into the metrics.
    """

    chosen: Bool[Tensor, "peers layers"] | None
    carried: Mapping[int, str] | None
    row: Mapping[str, Any]


def select(parts: PeerParts, node: Node, round_: int, state: PeerState, drawn: Sequence[int]) -> Selected:
    """Vote with the neighbours on this peer's layers, and tell each other which they are.

    A neighbour that says nothing in time has no vote: what its weight is stays with this peer's own. One
    whose choice is not known is sent nothing in this round.

    Args:
        parts: What this peer is made of.
        node: This peer among its neighbours.
        round_: Which round, from 1.
        state: Where this peer is before it.
        drawn: Batches that it has drawn so far.
    """
    votes = parts.votes
    if votes is None:
        return Selected(None, None, {})
    row, count = dict[str, Any](), len(votes.numbers)
    heard, mean = dict[int, tuple[str, float]](), torch.zeros(count)
    if votes.voted:
        gradient = first_gradients(parts, drawn, state, _ALONE)
        shares = votes.vote(state.bank.row(0), gradient.row(0)).float().cpu()
        heard = node.poll("vote", round_, vote(shares.tolist()))
        mean = shares + sum(weight * (vote_of(text, count) - shares) for text, weight in heard.values())
        row = {"layer_votes": shares.tolist()}
    chosen = votes.chosen(mean[None], state.round)
    if votes.voted:
        # Edges carry what both ends have told: another choice after a crash would fit nobody's.
        chosen = torch.tensor([node.choose(round_, chosen[0].tolist())])
    selected = choice(chosen[0].tolist())
    carried = dict.fromkeys(node.exchange.neighbours, selected)  # at random all have the same
    if votes.voted:
        choices = node.poll("choice", round_, selected, heard)
        both = {peer: torch.tensor(chosen_of(text, count)) for peer, (text, _) in choices.items()}
        carried = {peer: choice(votes.carries(chosen[0], other).tolist()) for peer, other in both.items()}
    layers = [number for number, on in zip(votes.numbers, chosen[0].tolist(), strict=True) if on]
    return Selected(chosen, carried, row | {"selected_layers": layers})
