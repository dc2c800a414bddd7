"""Compressed rows between real peers: CHOCO-Gossip's estimates on disk; see `federation.choco`.

Both ends of an edge hold two estimates, of either end's row. What they send in a round is a difference from
the estimate that the last round of this edge left which both know to count, its `basis`. A round moves the
estimates only when the edge is committed:

    before it is offered    payload = encode(own row − estimate), the same again after a crash
    committed               both estimates are moved, on the disk, before anything follows from it
    in doubt                what they would be is kept beside them; it takes their place if the answer is yes

While an edge is in doubt its basis is not known, so that nothing is sent over it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fedloom.data.randomness import derive_seed
from fedloom.federation.codecs import Codec
from fedloom.model.bank import Row, usable
from fedloom.runtimes.libp2p.journal import Journal, Key
from fedloom.runtimes.libp2p.opened import Offered
from fedloom.runtimes.libp2p.peer_store import PeerStore


@dataclass(frozen=True)
class Estimates:
    """What both ends of an edge know.

    Attributes:
        basis: The round that moved them last; 0 is none.
        own, other: Of this peer's row, and of the neighbour's.
    """

    basis: int
    own: Row
    other: Row


@dataclass(frozen=True)
class Compression:
    """How rows are compressed; the same for all of a run.

    Attributes:
        codec: What encodes.
        first: The row that all peers begin with.
        seed: Of the run; random choices of the codec depend on it, the round and the edge.
    """

    codec: Codec
    first: Row = field(default_factory=dict)
    seed: int = 0

    def known(self, store: PeerStore, peer: int) -> Estimates:
        """What both ends of the edge with a neighbour know."""
        kept = store.estimates(peer)
        return Estimates(*kept) if kept else Estimates(0, self.first, self.first)

    def encoded(self, round_: int, number: int, peer: int, row: Row, known: Estimates) -> Row:
        """What a peer sends a neighbour in a round; the same whenever it is asked for."""
        missing = {name: t.cpu() - known.own[name] for name, t in row.items()}
        # Counted from 0, as `fedloom dfl` does: both draw alike.
        drawn = derive_seed(self.seed, "gossip codec", round_ - 1, number - 1, peer - 1)
        return self.codec.encode(missing, drawn)

    def fits(self, known: Estimates, payload: Row) -> bool:
        """Whether a neighbour's payload can be decoded, and leads to an estimate that is of use."""
        try:
            arrived = self.codec.decode(payload, known.other)
        except (ValueError, KeyError):
            return False
        return usable({name: t + arrived[name] for name, t in known.other.items()})

    def moved(self, round_: int, known: Estimates, sent: Row, heard: Row) -> Estimates:
        """The estimates after a round whose payloads both ends have."""
        if known.basis >= round_:  # moved already, before this process was killed
            return known
        out, back = self.codec.decode(sent, known.own), self.codec.decode(heard, known.other)
        return Estimates(
            round_,
            {name: t + out[name] for name, t in known.own.items()},
            {name: t + back[name] for name, t in known.other.items()},
        )


def offered(
    compression: Compression,
    journal: Journal,
    store: PeerStore,
    neighbours: Collection[int],
    round_: int,
    row: Row,
    number: int,
) -> dict[int, Offered]:
    """What each neighbour is sent in a round; nothing where the edge is in doubt, or has had its round.

    Args:
        compression: How.
        journal: What is in doubt.
        store: What both ends know.
        neighbours: Their numbers.
        round_: Which round.
        row: What this peer trained.
        number: This peer.
    """
    # In this order: an answer that comes in between leaves its edge out of this round.
    doubtful = {key[1] for key in journal.doubts if key[0] < round_}
    for key in journal.unapplied(round_):
        store.promote(key)
    found = {}
    for peer in neighbours:
        known = compression.known(store, peer)
        if peer not in doubtful and known.basis < round_:
            payload = compression.encoded(round_, number, peer, row, known)
            found[peer] = Offered(payload, known.basis)
    return found


def both_ends(
    compression: Compression, journal: Journal, store: PeerStore, key: Key, row: Row, number: int, heard: Row
) -> tuple[Row, Row]:
    """The estimates of both rows after a round of an edge, moved on the disk if it is known to count.

    Args:
        compression: How.
        journal: What was decided.
        store: What both ends know.
        key: The edge's round; it is not decided against.
        row: What this peer trained.
        number: This peer.
        heard: The neighbour's payload.
    """
    round_, peer = key
    known = compression.known(store, peer)
    sent = compression.encoded(round_, number, peer, row, known)
    moved = compression.moved(round_, known, sent, heard)
    if moved.basis != known.basis:
        store.save_estimates(key, moved.own, moved.other, pending=not journal.decisions.get(key))
    return moved.own, moved.other
