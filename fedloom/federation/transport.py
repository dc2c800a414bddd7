"""Where clients and peers run, as a round sees it: who is there, and how what they send gets to whom.

A round knows no more than the functions here. In one process they call the engine (`runtimes.in_process`);
under torchrun each process answers for its share, and `reduce`, `fetch` and `deliver` carry what the others
have (`runtimes.gathering`); over Flower `train` sends messages and waits for answers
(`runtimes.flower.messenger`). All carry the same payloads, and count their bytes. Over libp2p there is no
round of all peers: each plays `federation.peers.peer_round` alone, to train, and then swaps payloads edge by
edge, as each edge is committed (`runtimes.libp2p.node`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedloom.federation.aggregate import Reduce
from fedloom.federation.choco import Payloads
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, Row

Train = Callable[[int, Sequence[int], Row, Row, Row], Iterable[Update]]
"""``(round, clients, what they train and send, what else the server's adapter has, what it sends for the
rule) -> updates``, in any order, of those who answer.
"""


@dataclass(frozen=True)
class ClientTransport:
    """How a server reaches its clients.

    Attributes:
        clients: Those that can be reached, in ascending order; a round's are sampled from them.
        train: Lets them train.
        reduce: Where ``train`` gives the updates of a part of the clients: adds those of the others.
    """

    clients: Sequence[int]
    train: Train
    reduce: Reduce = lambda collected: collected


@dataclass(frozen=True)
class PeerTransport:
    """How the peers of one process reach those of others.

    Attributes:
        peers: The numbers of those that are here; None is all.
        fetch: ``(rows of the peers that are here, the matrix) -> rows of all whom they hear``, by their
            numbers.
        deliver: ``(what leaves the peers that are here, the matrix) -> that, and what reaches them from
            elsewhere``.
    """

    peers: range | None = None
    fetch: Callable[[AdapterBank, RoundMixing], AdapterBank] = lambda bank, mixing: bank
    deliver: Callable[[Payloads, RoundMixing], Payloads] = lambda payloads, mixing: payloads


ALL_LOCAL = PeerTransport()
"""All peers are in this process."""
