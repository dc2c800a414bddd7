"""A peer among its neighbours, as its rounds see it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.model.bank import Row
from fedloom.runs.reading import Damaged
from fedloom.runtimes.libp2p.compressed import offered
from fedloom.runtimes.libp2p.counts import Counts
from fedloom.runtimes.libp2p.edges import Edges
from fedloom.runtimes.libp2p.exchange import Exchange
from fedloom.runtimes.libp2p.journal import Journal
from fedloom.runtimes.libp2p.lag import Lag
from fedloom.runtimes.libp2p.messages import Expected, choice, chosen_of
from fedloom.runtimes.libp2p.mixes import (
    Mix,
    MixingRule,
    aggregate_of_neighbours,
    agreed,
    mean_of_neighbours,
)
from fedloom.runtimes.libp2p.neighbors import Neighbor
from fedloom.runtimes.libp2p.network_thread import NetworkThread
from fedloom.runtimes.libp2p.opened import Offered
from fedloom.runtimes.libp2p.peer_store import PeerStore
from fedloom.runtimes.libp2p.polls import Poll
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema
from fedloom.runtimes.libp2p.statements import NOTHING, Signer, Statement
from fedloom.runtimes.libp2p.transport import Libp2p
from fedloom.runtimes.libp2p.wire import Wire


@dataclass(frozen=True)
class Node:
    """A peer among its neighbours, as the round sees it; rounds count from 1.

    Attributes:
        network: Where messages are sent and answered.
        exchange: The agreement with neighbours.
        journal, store: What outlives a crash.
        rule: How rows are mixed.
        lag: How far others may be ahead.
    """

    network: NetworkThread
    exchange: Exchange
    journal: Journal
    store: PeerStore
    rule: MixingRule
    lag: Lag

    @property
    def counts(self) -> Counts:
        """Bytes and refusals so far."""
        return self.exchange.wire.counts

    def open(self) -> None:
        """Answer neighbours from now on, and say hello; a round that was not finished is settled first."""
        last = self.store.trained_round
        if last is not None:
            self.exchange.recover(last)
            self.lag.lost, self.lag.training = self.store.since_trained(last)
        self.network.run(self.exchange.start())
        self.network.run(self.exchange.meet())
        self.lag.leaves()

    def begin(self, round_: int) -> None:
        """Enter a round."""
        self.network.run(self.exchange.begin(round_))

    def next_round(self, following: int) -> int:
        """The round to go on with: `following`, or that of the others where they are ahead; see `Lag`.

        It may be one more than there are, where they have done all.
        """
        wire = self.exchange.wire
        claims = sorted((wire.heard[peer][0] for peer in list(wire.present)), reverse=True)
        voices = len(claims) // 2 + 1  # more than half
        return self.lag.believed(following, claims[voices - 1], voices) if claims else following

    def poll(
        self, poll: Poll, round_: int, layers: str, among: Collection[int] | None = None
    ) -> dict[int, tuple[str, float]]:
        """Tell neighbours something before training, and hear the same of them; see `Exchange.poll`.

        Returns:
            By neighbour what it has told, and the weight of its edge.
        """
        whom = self.exchange.neighbours if among is None else sorted(among)
        heard = self.network.run(self.exchange.poll(poll, round_, layers, whom))
        return {
            peer: (message.layers, self.exchange.edges.weight(message)) for peer, message in heard.items()
        }

    def choose(self, round_: int, chosen: Sequence[bool]) -> list[bool]:
        """A round's layers by its votes; those that neighbours were told before this peer was killed stand.

        Raises:
            Damaged: The journal is not as it was written.
        """
        try:
            return chosen_of(self.journal.choose(round_, choice(chosen)), len(chosen))
        except MessageRefused as error:
            raise Damaged(self.store.folder, f"the layers of round {round_}: {error}") from None

    def swap(
        self,
        round_: int,
        trained: Row,
        missed: int = 0,
        layers: Mapping[int, str] | None = None,
        remembered: Row | None = None,
    ) -> Mix:
        """Exchange rows with the neighbours; what comes of it is in the journal when this returns.

        Args:
            round_: Which round.
            trained: What this peer trained; it has been saved.
            missed: Rounds before this one that it was not there for.
            layers: Those that each edge carries, by neighbour, as messages say them; the others' edges carry
                nothing. None: all edges carry all.
            remembered: What the aggregator remembers of earlier rounds.
        """
        self.lag.enters()
        journal, store, rule = self.journal, self.store, self.rule
        neighbours, number = self.exchange.neighbours, self.exchange.wire.number
        statement = self._say(round_, trained)
        if rule.compression is None:
            carried = dict.fromkeys(neighbours, "") if layers is None else layers
            parts = {peer: self._part(trained, chosen) for peer, chosen in carried.items()}
            same = lambda peer, row: row.keys() == parts[peer].row.keys()  # noqa: E731
            self.network.run(self.exchange.swap(round_, parts, statement, same))
        else:
            contents = offered(rule.compression, journal, store, neighbours, round_, trained, number)
            known = {peer: rule.compression.known(store, peer) for peer in contents}
            fits = rule.compression.fits
            self.network.run(
                self.exchange.swap(round_, contents, statement, lambda peer, row: fits(known[peer], row))
            )
        edges = agreed(journal, store, neighbours, round_, trained, number, rule)
        if rule.keeps_mean:
            mix = mean_of_neighbours(edges, round_, store, rule.most)
            late, more = self._late(round_)
            mix = replace(mix, differences=[*mix.differences, *more], late=late)
        else:
            mix = aggregate_of_neighbours(edges, round_, trained, number, rule, remembered or {})
        self.lag.leaves(in_step=bool(mix.row))
        journal.write(
            "mixed",
            round=round_,
            aggregator=self.rule.name,
            row=mix.row,
            own=mix.own,
            late=mix.late,
            in_doubt=mix.in_doubt,
            missed=missed,
        )
        return mix

    def _part(self, row: Row, layers: str) -> Offered:
        entries = self.exchange.wire.expected.schema_of(layers).entries
        return Offered({name: row[name] for name, *_ in entries}, layers=layers)

    def finish(self, last: int) -> Mix:
        """After this peer's last round: leave nobody without an answer, and get one's own.

        Args:
            last: The round, the run's last one or an earlier one.
        """
        self.network.run(self.exchange.finish(last))
        late, differences = self._late(last + 1) if self.rule.keeps_mean else ([], [])
        self.journal.write("closed", round=last, late=late)
        return Mix(differences, late=late)

    def _say(self, round_: int, trained: Row) -> Statement:
        """What this peer says of its row; what it has said before it was killed stands."""
        wire = self.exchange.wire
        digest = hashlib.sha256(Schema.of(trained).pack(trained)).hexdigest()
        statement = self.journal.said.get(round_)
        if statement is None:
            last = max(self.journal.said, default=0)
            before = self.journal.said[last].mark(wire.expected.run, wire.number) if last else NOTHING
            statement = wire.signer.say(round_, digest, before)
            self.journal.say(statement)
        elif statement.row != digest:
            raise UserError(
                f"round {round_}: this peer has told its neighbours another row than it has; exchange/ is "
                "not as fedloom left it: put it back, or take another exp_name and another key"
            )
        return statement

    def keep_trained(self, round_: int, tensors: Row, state: dict[str, Any], seconds: float) -> None:
        """Save what training came to, and how long it took; what only earlier rounds needed goes."""
        self.lag.training = seconds
        self.store.save_trained(round_, tensors, state, seconds)
        self.store.clear(round_, {*self.journal.doubts, *self.journal.unapplied(round_)})

    def _late(self, before: int) -> tuple[list[dict[str, Any]], list[Row]]:
        late, differences = [], []
        for key in self.journal.unapplied(before):
            kept = self.store.doubt(key)
            if kept is None:
                raise Damaged(
                    self.store.folder,
                    f"the difference of round {key[0]} with peer {key[1]} is not there",
                    "put a copy back, or let this peer begin again under another --exp_name",
                )
            change, weight = kept
            self.store.promote(key)
            late.append({"round": key[0], "peer": key[1], "weight": weight})
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
    signer: Signer,
    rule: MixingRule,
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
        signer: What this peer signs with.
        rule: How rows are mixed.
    """
    journal, store = Journal(folder), PeerStore(folder)
    identities = {peer: neighbour.id for peer, neighbour in neighbours.items()}
    journal.write(
        "peer",
        client=number,
        clients=expected.clients,
        neighbors=sorted(neighbours),
        run=expected.run,
        identities={str(peer): known for peer, known in {**identities, number: signer.identity}.items()},
    )
    wire = Wire(number, len(neighbours), expected, transport, timeout, signer, identities)
    exchange = Exchange(Edges(wire, journal, store, rule.step), neighbours)
    node = Node(network, exchange, journal, store, rule, Lag(timeout))
    try:
        node.open()
        yield node
    finally:
        network.run(node.exchange.edges.stop())
        journal.close()
