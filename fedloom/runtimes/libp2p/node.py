"""A peer's network side in a thread of its own, so that neighbours are answered while it trains."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedloom.federation.neighbours import difference
from fedloom.model.bank import Row
from fedloom.runs.reading import Damaged
from fedloom.runtimes.libp2p.counts import Counts
from fedloom.runtimes.libp2p.edges import Edges
from fedloom.runtimes.libp2p.exchange import Exchange
from fedloom.runtimes.libp2p.journal import Journal
from fedloom.runtimes.libp2p.messages import Expected
from fedloom.runtimes.libp2p.neighbors import Neighbor
from fedloom.runtimes.libp2p.shelf import Shelf
from fedloom.runtimes.libp2p.transport import Libp2p
from fedloom.runtimes.libp2p.wire import Wire

T = TypeVar("T")


class NetworkThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peers", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something there, and wait for it; it ends if this is interrupted."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@dataclass(frozen=True)
class Mix:
    """What a round adds to a peer's row.

    Attributes:
        differences: To be added, in this order.
        neighbours: With whom the round was mixed.
        late: Rounds of edges that were in doubt until now: ``round``, ``peer``, ``weight``.
        in_doubt: Neighbours whose decision is not known yet.
    """

    differences: list[Row]
    neighbours: list[int]
    late: list[dict[str, Any]]
    in_doubt: list[int]


@dataclass(frozen=True)
class Node:
    """A peer among its neighbours, as the round sees it; rounds count from 1.

    Attributes:
        network: Where messages are sent and answered.
        exchange: The agreement with neighbours.
        journal, shelf: What outlives a crash.
    """

    network: NetworkThread
    exchange: Exchange
    journal: Journal
    shelf: Shelf

    @property
    def counts(self) -> Counts:
        """Bytes and refusals so far."""
        return self.exchange.wire.counts

    def open(self) -> None:
        """Answer neighbours from now on, and say hello; a round that was not finished is settled first."""
        if self.shelf.trained_round is not None:
            self.exchange.recover(self.shelf.trained_round)
        self.network.run(self.exchange.start())
        self.network.run(self.exchange.meet())

    def begin(self, round_: int) -> None:
        """Enter a round."""
        self.network.run(self.exchange.begin(round_))

    def furthest(self) -> int:
        """The latest round that a neighbour is in; one more than there are where it has done all."""
        return max((at for at, _ in list(self.exchange.wire.heard.values())), default=0)

    def swap(self, round_: int, own: Row, missed: int = 0) -> Mix:
        """Exchange rows with the neighbours; what comes of it is in the journal when this returns.

        Args:
            round_: Which round.
            own: What this peer trained; it has been saved.
            missed: Rounds before this one that it was not there for.
        """
        self.network.run(self.exchange.swap(round_, own))
        row, in_doubt, differences = {}, [], []
        for peer in self.exchange.neighbours:
            key = (round_, peer)
            heard = self.shelf.heard(key)
            if key not in self.journal.weights or heard is None:
                continue
            weight, commit = self.journal.weights[key], self.journal.decisions.get(key)
            if commit:
                row[peer] = weight
                differences.append(difference(own, heard, weight))
            elif commit is None:
                self.shelf.save_doubt(key, difference(own, heard, weight))
                in_doubt.append(peer)
        late, more = self._late(round_)
        self.journal.write(
            "mixed",
            round=round_,
            row=row,
            own=1.0 - sum(row.values()),
            late=late,
            in_doubt=in_doubt,
            missed=missed,
        )
        return Mix([*differences, *more], [*row], late, in_doubt)

    def finish(self) -> Mix:
        """After the last round: leave nobody without an answer, and get one's own."""
        self.network.run(self.exchange.finish())
        rounds = self.exchange.wire.expected.rounds
        late, differences = self._late(rounds + 1)
        self.journal.write("closed", round=rounds, late=late)
        return Mix(differences, [], late, [])

    def keep_trained(self, round_: int, tensors: Row, state: dict[str, Any]) -> None:
        """Save what training came to; what only earlier rounds needed goes."""
        self.shelf.save_trained(round_, tensors, state)
        self.shelf.clear(round_, {*self.journal.doubts, *self.journal.unapplied(round_)})

    def _late(self, before: int) -> tuple[list[dict[str, Any]], list[Row]]:
        late, differences = [], []
        for key in self.journal.unapplied(before):
            change = self.shelf.doubt(key)
            if change is None:
                raise Damaged(
                    self.shelf.folder,
                    f"the difference of round {key[0]} with peer {key[1]} is not there",
                    "put a copy back, or let this peer begin again under another --exp_name",
                )
            late.append({"round": key[0], "peer": key[1], "weight": self.journal.weights[key]})
            differences.append(change)
        return late, differences


@contextmanager
def listening(
    identity: Path, listen: str, neighbors: dict[int, Neighbor]
) -> Iterator[tuple[NetworkThread, Libp2p]]:
    """The daemon of a peer, which nobody answers for yet.

    Raises:
        UserError: The address cannot be bound.
    """
    network = NetworkThread()
    try:
        daemon = network.run(Libp2p.start(identity, listen, neighbors))
        try:
            yield network, daemon
        finally:
            network.run(daemon.close())
    finally:
        network.close()


@contextmanager
def joined(
    network: NetworkThread,
    transport: Libp2p,
    folder: Path,
    number: int,
    neighbours: dict[int, Neighbor],
    expected: Expected,
    timeout: float,
) -> Iterator[Node]:
    """A peer that has said hello to its neighbours.

    Args:
        network: Where messages are sent and answered.
        transport: The daemon.
        folder: The run's.
        number: This peer, from 1.
        neighbours: Whom it talks to.
        expected: What all messages have in common.
        timeout: Seconds that a neighbour is waited for.
    """
    journal, shelf = Journal(folder), Shelf(folder)
    journal.write(
        "peer", client=number, clients=expected.clients, neighbors=sorted(neighbours), run=expected.run
    )
    wire = Wire(number, len(neighbours), expected, transport, timeout)
    node = Node(network, Exchange(Edges(wire, journal, shelf), neighbours), journal, shelf)
    try:
        node.open()
        yield node
    finally:
        network.run(node.exchange.edges.stop())
        journal.close()
