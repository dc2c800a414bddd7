"""CHOCO-Gossip (Koloskova et al., 2019, arXiv:1902.00340, algorithm 1): compressed differences are sent.

Compressing the rows themselves would move the mean over peers, and never let them agree. Instead both ends of
a directed edge i → j hold the same estimate h_ij of w_i, which begins at the row that all peers begin with.
With Q what a codec makes of a row and decodes again, and W the round's mixing matrix, whose weights have the
consensus step size γ in them already:

    for every edge i → j of the round:    q_ij ← Q(w_i − h_ij)            q_ij is sent
                                          h_ij ← h_ij + q_ij              at both ends
    for every peer i:                     w_i ← w_i + Σ_j W_ij (h_ji − h_ij)

What an edge adds at one end it takes at the other, so that the mean over peers stays what it was, whatever
the codec loses. What it loses is in w_i − h_ij, and sent later. An edge that is out for a round keeps its
estimates, which is why there is one for every edge and not one for every peer, as in the paper. With a codec
that loses nothing h_ij = w_i, and this is plain gossip.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from fedloom.data.randomness import derive_seed
from fedloom.federation.codecs import Codec
from fedloom.federation.matrix import Edge, RoundMixing
from fedloom.model.bank import AdapterBank, Row

Payloads = dict[Edge, Row]
"""``{(sender, receiver): payload}``; peers from 0."""


@dataclass(frozen=True)
class Estimates:
    """What both ends of each directed edge know of the sender.

    Attributes:
        first: The row that all peers begin with, of the parameters that are sent.
        rows: h_ij by edge, of the edges that have been used and have an end here.
    """

    first: Row = field(default_factory=dict)
    rows: Mapping[Edge, Row] = field(default_factory=dict)

    def of(self, edge: Edge) -> Row:
        """h_ij."""
        return self.rows.get(edge, self.first)

    def advanced(self, payloads: Payloads, codec: Codec) -> Estimates:
        """The estimates after a round: h_ij + q_ij of the edges of which there is a payload."""
        moved = {}
        for edge, payload in payloads.items():
            known = self.of(edge)
            arrived = codec.decode(payload, known)
            moved[edge] = {name: t + arrived[name] for name, t in known.items()}
        return Estimates(self.first, {**self.rows, **moved})

    def differences(self, peer: int, neighbours: Collection[int]) -> dict[int, Row]:
        """h_ji − h_ij of a peer i, by neighbour j."""
        found = {}
        for other in neighbours:
            theirs, ours = self.of((other, peer)), self.of((peer, other))
            found[other] = {name: t - ours[name] for name, t in theirs.items()}
        return found


def payloads_of(
    bank: AdapterBank,
    estimates: Estimates,
    mixing: RoundMixing,
    codec: Codec,
    *,
    local: range,
    seed: int,
    round_: int,
) -> Payloads:
    """What the peers that are here send to their neighbours in a round.

    Args:
        bank: Their rows, of the parameters that are sent.
        estimates: What both ends of their edges know.
        mixing: The round's matrix.
        codec: What encodes.
        local: Their numbers.
        seed: Of the run.
        round_: Which round, from 0.
    """
    payloads = {}
    for peer, heard in mixing.neighbourhoods(local).items():
        row = bank.row(peer - local.start)
        for other in heard:
            if other != peer:
                known = estimates.of((peer, other))
                missing = {name: t - known[name] for name, t in row.items()}
                drawn = derive_seed(seed, "gossip codec", round_, peer, other)
                payloads[peer, other] = codec.encode(missing, drawn)
    return payloads


def as_bank(rows: Mapping[Edge, Row], like: Row) -> AdapterBank:
    """Estimates as a bank, a row per edge, in the order of the edges; perhaps of none."""
    if not rows:
        return AdapterBank({name: t.new_empty(0, *t.shape) for name, t in like.items()})
    return AdapterBank({name: torch.stack([rows[edge][name] for edge in sorted(rows)]) for name in like})
