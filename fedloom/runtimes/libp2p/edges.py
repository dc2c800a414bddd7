"""One peer's side of its edges: for every edge and round an agreement of two sides on whether it counts.

The lower number of an edge decides. With r the round, and rows saved before anything is said of them:

    lower → higher   offer r, its row        when it has trained
    higher → lower   ready r, its row        when it has trained too; from now on it does not decide alone
    lower            writes its decision     commit, where it has the row; out, where that took too long
    lower → higher   decision                which the higher one writes as well
    higher → lower   acknowledged

Before it is ready the higher one may give up alone. If it was ready and hears no decision, the edge is in
doubt: it goes on without it and asks again, as often as it takes. A lower one that has no decision in its
journal, because it was killed, decides `out` (presumed abort). So in the end both sides have the same answer,
whatever the timing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress

from fedloom.federation.matrix import edge_weight
from fedloom.runs.files import CannotWrite
from fedloom.runtimes.libp2p.attempts import Attempts
from fedloom.runtimes.libp2p.journal import Journal, Key
from fedloom.runtimes.libp2p.messages import Kind, Message, Verdict
from fedloom.runtimes.libp2p.opened import Open
from fedloom.runtimes.libp2p.peer_store import PeerStore
from fedloom.runtimes.libp2p.polls import Polls
from fedloom.runtimes.libp2p.schema import MessageRefused
from fedloom.runtimes.libp2p.statements import Statement
from fedloom.runtimes.libp2p.transport import Stream
from fedloom.runtimes.libp2p.wire import LOST, RETRY_SECONDS, Wire

_MOST_STREAMS = 16


class Edges:
    """What this peer says to its neighbours, and how it answers them; all in one event loop.

    Attributes:
        attempts: What is being said and answered.
        polls: What is told before anybody trains.
        opened: The round whose rows are being exchanged, if any.
        unacknowledged: Commits that the other end has not confirmed.
        ready_at: Since when this peer has been ready.
        failure: Why what was said or heard could not be kept: the disk is full, not a neighbour lost.
    """

    def __init__(self, wire: Wire, journal: Journal, store: PeerStore, step: float = 1.0) -> None:
        """Nothing is said or answered before it is asked for.

        Args:
            wire: This peer's streams.
            journal: What it has promised and decided.
            store: Where rows outlive a crash.
            step: What Metropolis weights are multiplied by.
        """
        self.wire, self.journal, self.store, self.step = wire, journal, store, step
        self.attempts, self.polls = Attempts(wire.counts, self._fail), Polls(wire)
        self.opened: Open | None = None
        self.unacknowledged: set[Key] = set()
        self.ready_at: dict[Key, float] = {}
        self.failure: CannotWrite | None = None
        self._answering: dict[Key, asyncio.Task[bool]] = {}
        self._streams: Counter[int] = Counter()

    async def greet(self, peer: int) -> None:
        """Say hello, and ask for what is in doubt."""
        async with self.wire.dialled(peer) as stream:
            await self.wire.send(stream, "hello", 0, starts=self.journal.starts)
            await self.wire.receive(stream, peer, ("hello",))
        await self.settle(peer)

    async def settle(self, peer: int) -> None:
        """Ask a neighbour for its decisions that are in doubt."""
        for key in self.journal.doubts:
            if key[1] == peer:
                async with self.wire.dialled(peer) as stream:
                    await self.wire.send(stream, "question", key[0])
                    answer = await self.wire.receive(stream, peer, ("decision",), key[0])
                    self._learn(key, answer.verdict)

    async def keep_offering(self, peer: int, opened: Open) -> None:
        """As the lower number: offer a round's row to a neighbour that is there, until that is decided."""
        key = (opened.round, peer)
        while key not in self.journal.decisions:
            if peer not in self.wire.present:
                await self.wire.change()
                continue
            try:
                await self._offer(peer, opened)
            except MessageRefused as error:
                self.wire.counts.refuse(peer, error)
                self.journal.decide(key, False)
                self.wire.wake()
            except LOST:
                await asyncio.sleep(RETRY_SECONDS)

    async def _offer(self, peer: int, opened: Open) -> None:
        key = (opened.round, peer)
        async with self.wire.dialled(peer) as stream:
            await self._send_row(stream, "offer", peer, opened)
            # It answers when it has trained; whoever called says how long that may take.
            answer = await self.wire.receive(stream, peer, ("ready", "passed"), opened.round, wait=True)
            if answer.row is None:
                self.journal.decide(key, False)
                self.wire.wake()
                return
            self._believe(key, answer.said)
            self._check_fit(key, opened, answer)
            if key not in self.journal.decisions:
                self.store.save_heard(key, answer.row)
                self.unacknowledged.add(key)
                self.journal.decide(key, True, self.weight(answer))
                self.wire.wake()
            await self.wire.send(stream, "decision", opened.round, verdict=self._verdict(key))
            await self.wire.receive(stream, peer, ("acknowledged",), opened.round)
            self.unacknowledged.discard(key)

    async def serve(self, peer: int, stream: Stream) -> None:
        """Answer a stream that a neighbour opened."""
        self.attempts.keep(asyncio.current_task())
        self._streams[peer] += 1
        try:
            if self._streams[peer] > _MOST_STREAMS:
                raise MessageRefused("busy", f"more than {_MOST_STREAMS} streams at once")
            request = await self.wire.receive(
                stream, peer, ("hello", "vote", "choice", "offer", "question"), oldest=self.wire.at
            )
            if request.kind == "hello":
                await self.wire.send(stream, "hello", request.round)
                self.attempts.spawn(self.settle, peer)
                self.attempts.spawn(self.polls.tell_again, peer, request.starts)
            elif request.kind in ("vote", "choice"):
                await self.polls.hear(peer, request, stream)
            elif request.kind == "question":
                await self._answer_question(peer, request, stream)
            else:
                await self._take_turn(peer, request, stream)
        except MessageRefused as error:
            self.wire.counts.refuse(peer, error)
            with suppress(*LOST):
                await self.wire.send(stream, "passed", error.round)
        except CannotWrite as error:
            self._fail(error)
        except LOST:
            pass
        finally:
            self._streams[peer] -= 1
            stream.close()

    async def _answer_question(self, peer: int, question: Message, stream: Stream) -> None:
        if peer < self.wire.number:
            raise MessageRefused("format", "a question to the side that does not decide")
        key = (question.round, peer)
        await self.wire.send(stream, "decision", question.round, verdict=self._verdict(key))
        if key in self.journal.decisions:
            self.unacknowledged.discard(key)

    async def _take_turn(self, peer: int, offer: Message, stream: Stream) -> None:
        """Of several offers of a round, or of later rounds, the newest counts: the older streams are lost."""
        if peer > self.wire.number:
            raise MessageRefused("format", "an offer by the side that does not decide")
        key, task = (offer.round, peer), self.attempts.spawn(self._answer_offer, peer, offer, stream)
        for other, older in self._answering.items():
            if other[1] == peer and (other == key or other[0] > self.wire.at):
                older.cancel()
        self._answering[key] = task
        await asyncio.wait([task])
        if self._answering.get(key) is task:
            del self._answering[key]

    async def _answer_offer(self, peer: int, offer: Message, stream: Stream) -> None:
        assert offer.row is not None
        key = (offer.round, peer)
        while key not in self.journal.decisions and self._before(offer.round):
            await self.wire.change()
        opened = self.opened
        if (
            opened is None
            or opened.round != offer.round
            or key in self.journal.decisions
            or peer not in opened.offered
        ):
            await self.wire.send(stream, "passed", offer.round)
            return
        try:
            self._believe(key, offer.said)
            self._check_fit(key, opened, offer)
        except MessageRefused as error:
            self.wire.counts.refuse(peer, error)
            await self.wire.send(stream, "passed", offer.round)
            return
        if key not in self.journal.weights:
            self.store.save_heard(key, offer.row)
            self.journal.ready(key, self.weight(offer))
        # The first offer counts: by repeating it nobody gets more time.
        self.ready_at.setdefault(key, time.monotonic())
        try:
            await self._send_row(stream, "ready", peer, opened)
            answer = await self.wire.receive(stream, peer, ("decision",), offer.round)
            self._learn(key, answer.verdict)
            await self.wire.send(stream, "acknowledged", offer.round)
        finally:
            if key in self.journal.doubts:
                self.attempts.spawn(self._ask_while_open, peer, offer.round)

    def _believe(self, key: Key, said: Statement | None) -> None:
        """Keep what a neighbour says of its row.

        Raises:
            MessageRefused: It has said something else before.
        """
        assert said is not None, "a row comes with a statement"
        self.journal.hear(key, said)  # also, and above all, where it contradicts itself
        if not said.says_what(self.journal.heard[key]):
            raise MessageRefused("two_rows", f"another row of round {key[0]} than before")
        last = self.journal.heard.get((key[0] - 1, key[1]))
        if last is not None and said.before != last.mark(self.wire.expected.run, key[1]):
            raise MessageRefused(
                "chain", f"what it says of round {key[0]} does not follow what it said before"
            )

    async def _send_row(self, stream: Stream, kind: Kind, peer: int, opened: Open) -> None:
        what = opened.offered[peer]
        await self.wire.send(
            stream,
            kind,
            opened.round,
            row=what.row,
            said=opened.said,
            basis=what.basis,
            layers=what.layers,
        )

    def _check_fit(self, key: Key, opened: Open, message: Message) -> None:
        """Judge a row that came.

        Raises:
            MessageRefused: It is a difference from something else than this side has, or of no use.
        """
        assert message.row is not None
        basis = opened.offered[key[1]].basis
        if message.basis != basis:
            raise MessageRefused(
                "basis", f"a difference since round {message.basis}, and not {basis}", key[0]
            )
        if not opened.fits(key[1], message.row):
            raise MessageRefused("format", "it cannot be decoded to a row that is of use", key[0])

    def weight(self, message: Message) -> float:
        """W_ij of an edge, of which a message has come from the other end."""
        return self.step * float(edge_weight(self.wire.degree, message.degree))

    def _before(self, round_: int) -> bool:
        """Whether the rows of a round are still to be exchanged."""
        return self.wire.at <= round_ and (self.opened is None or self.opened.round < round_)

    async def _ask_while_open(self, peer: int, round_: int) -> None:
        while (
            self.opened is not None and self.opened.round == round_ and (round_, peer) in self.journal.doubts
        ):
            await self.attempts.attempt(self.settle, peer)
            await asyncio.sleep(RETRY_SECONDS)

    def _verdict(self, key: Key) -> Verdict:
        """The lower number's decision; `out` if there is none of a round that is over."""
        if key not in self.journal.decisions and key[0] >= self.wire.at:
            return "open"
        return "commit" if self.journal.decide(key, False) else "out"

    def _learn(self, key: Key, verdict: Verdict | None) -> None:
        if key in self.journal.weights and verdict in ("commit", "out"):
            self.journal.decide(key, verdict == "commit", self.journal.weights[key])
            self.wire.wake()

    def check(self) -> None:
        """Raise what has kept anything that was said or heard from being kept.

        Raises:
            CannotWrite: The disk is full, or may not be written.
        """
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: CannotWrite) -> None:
        self.failure = error
        self.wire.wake()

    async def stop(self) -> None:
        """End everything that still runs."""
        await self.attempts.stop()
