"""The exchange of rows with neighbours: an agreement of two sides for every edge and round.

The lower number of an edge decides. With r the round, and rows saved before anything is said of them:

    lower → higher   offer r, its row        when it has trained
    higher → lower   ready r, its row        when it has trained too; from here on it no longer decides alone
    lower            writes its decision     commit, where it has the row; out, where that took too long
    lower → higher   decision                which the higher one writes as well
    higher → lower   thanks

Before it is ready the higher one may give up alone. If it was ready and hears no decision, the edge is in doubt: it
goes on without it and asks again, as often as it takes. A lower one that has no decision in its journal, because it
was killed, decides `out` (presumed abort). So in the end both sides have the same answer, whatever the timing.

A neighbour is waited for `timeout` seconds, and after that not again until it says something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection
from contextlib import suppress
from dataclasses import dataclass

from fedloom.federation.neighbours import edge_weight
from fedloom.model.bank import Row
from fedloom.runtimes.libp2p.journal import Journal, Key
from fedloom.runtimes.libp2p.messages import Message, MessageRefused, Verdict
from fedloom.runtimes.libp2p.shelf import Shelf
from fedloom.runtimes.libp2p.transport import Stream
from fedloom.runtimes.libp2p.wire import LOST, Wire

RETRY_SECONDS = 0.25


@dataclass(frozen=True)
class Open:
    """The round whose rows are being exchanged: its number from 1, this peer's row, and since when."""

    round: int
    row: Row
    began: float


class Exchange:
    """One peer's side of all its edges; everything here runs in one event loop."""

    def __init__(self, wire: Wire, neighbours: Collection[int], journal: Journal, shelf: Shelf) -> None:
        """Nothing is said or answered before `start`.

        Args:
            wire: This peer's streams.
            neighbours: The numbers of those at the other ends.
            journal: What this peer has promised and decided.
            shelf: Where rows outlive a crash.
        """
        self.wire, self.neighbours, self.journal, self.shelf = wire, sorted(neighbours), journal, shelf
        self._open: Open | None = None
        self._unthanked: set[Key] = set()
        self._ready_at: dict[Key, float] = {}
        self._answering: dict[Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Answer neighbours from now on."""
        await self.wire.transport.serve(self._serve, self.wire.counts.refuse_stranger)

    async def meet(self) -> None:
        """Say hello to all neighbours, until all have said something, or the timeout is over."""

        async def until_heard(peer: int) -> None:
            while peer not in self.wire.present:
                await self._attempt(peer, self._greet(peer))
                if peer not in self.wire.present:
                    await self.wire.change(RETRY_SECONDS)

        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*map(until_heard, self.neighbours)), self.wire.timeout)

    async def begin(self, round_: int) -> None:
        """Enter a round, and tell the neighbours; nobody is waited for."""
        self.wire.at = round_
        self.wire.wake()
        for peer in self.neighbours:
            self._spawn(peer, self._greet(peer))

    def recover(self, round_: int) -> None:
        """Settle the edges of a round in which this process was killed, before `start` and `swap`."""
        self.wire.at = round_
        for peer in self.neighbours:
            self._give_up((round_, peer))

    async def swap(self, round_: int, row: Row) -> None:
        """Exchange rows with everybody who is there in time.

        Afterwards the journal has a decision for every edge, except where it is in doubt.

        Args:
            round_: Which round, from 1.
            row: What this peer trained, and saved.
        """
        self._open = opened = Open(round_, row, time.monotonic())
        offers = {
            peer: self._spawn(peer, self._keep_offering(peer, opened))
            for peer in self.neighbours
            if peer > self.wire.number
        }
        self.wire.wake()
        while waited := [peer for peer in self.neighbours if self._waited_for(peer, opened)]:
            ends = min(self._deadline(peer, opened) for peer in waited)
            await self.wire.change(max(0.0, ends - time.monotonic()))
        self._open = None
        for peer in self.neighbours:
            if (round_, peer) not in self.journal.decisions:
                self.wire.present.discard(peer)
                self._give_up((round_, peer))
                if peer in offers:
                    offers[peer].cancel()
        self.wire.wake()

    async def finish(self) -> None:
        """After the last round: ask and answer questions, until nobody needs it or the timeout is over."""
        last = self.wire.expected.rounds
        await self.begin(last + 1)
        ends = time.monotonic() + self.wire.timeout
        while (left := ends - time.monotonic()) > 0 and (
            self.journal.doubts
            or self._unthanked
            or any(self.wire.heard[peer][0] <= last for peer in self.wire.present)
        ):
            for peer in {key[1] for key in self.journal.doubts}:
                await self._attempt(peer, asyncio.wait_for(self._settle(peer), left))
            await self.wire.change(min(left, RETRY_SECONDS))

    async def stop(self) -> None:
        """End everything that still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, key: Key) -> None:
        """Decide `out` where this side may: the lower number always, the higher one before it is ready."""
        if key[1] > self.wire.number or key not in self.journal.weights:
            self.journal.decide(key, False)

    def _waited_for(self, peer: int, opened: Open) -> bool:
        key = (opened.round, peer)
        if key in self.journal.decisions or peer not in self.wire.present:
            return False
        gone_on = self.wire.heard[peer][0] > opened.round
        return (key in self.journal.weights or not gone_on) and time.monotonic() < self._deadline(
            peer, opened
        )

    def _deadline(self, peer: int, opened: Open) -> float:
        """Who has just come into this round, or is ready, has the whole time from then."""
        at, since = self.wire.heard.get(peer, (0, 0.0))
        entered = since if at == opened.round else 0.0
        ready = self._ready_at.get((opened.round, peer), 0.0)
        return max(opened.began, entered, ready) + self.wire.timeout

    async def _keep_offering(self, peer: int, opened: Open) -> None:
        key = (opened.round, peer)
        while key not in self.journal.decisions:
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
            await self.wire.send(stream, "offer", opened.round, row=opened.row)
            # It answers when it has trained; `swap` says how long that may take.
            answer = await self.wire.receive(stream, peer, ("ready", "passed"), opened.round, wait=True)
            if answer.row is None:
                self.journal.decide(key, False)
                self.wire.wake()
                return
            if key not in self.journal.decisions:
                self.shelf.save_heard(key, answer.row)
                self._unthanked.add(key)
                self.journal.decide(key, True, edge_weight(len(self.neighbours), answer.degree))
                self.wire.wake()
            await self.wire.send(stream, "decision", opened.round, verdict=self._verdict(key))
            await self.wire.receive(stream, peer, ("thanks",), opened.round)
            self._unthanked.discard(key)

    async def _serve(self, peer: int, stream: Stream) -> None:
        """Answer a stream that a neighbour opened."""
        try:
            request = await self.wire.receive(
                stream, peer, ("hello", "offer", "question"), oldest=self.wire.at
            )
            if request.kind == "hello":
                await self.wire.send(stream, "hello", request.round)
                self._spawn(peer, self._settle(peer))
            elif request.kind == "question":
                await self._answer_question(peer, request, stream)
            else:
                await self._take_turn(peer, request, stream)
        except MessageRefused as error:
            self.wire.counts.refuse(peer, error)
            with suppress(*LOST):
                await self.wire.send(stream, "passed", 0)
        except LOST:
            pass
        finally:
            stream.close()

    async def _answer_question(self, peer: int, question: Message, stream: Stream) -> None:
        if peer < self.wire.number:
            raise MessageRefused("format", "a question to the side that does not decide")
        key = (question.round, peer)
        await self.wire.send(stream, "decision", question.round, verdict=self._verdict(key))
        if key in self.journal.decisions:
            self._unthanked.discard(key)

    async def _take_turn(self, peer: int, offer: Message, stream: Stream) -> None:
        """Of several offers of a round, or of later rounds, the newest counts: the others' streams are lost."""
        if peer > self.wire.number:
            raise MessageRefused("format", "an offer by the side that does not decide")
        key, task = (offer.round, peer), self._spawn(peer, self._answer_offer(peer, offer, stream))
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
        while self.wire.at <= offer.round and (self._open is None or self._open.round < offer.round):
            if key in self.journal.decisions:
                break
            await self.wire.change()
        opened = self._open
        if opened is None or opened.round != offer.round or key in self.journal.decisions:
            await self.wire.send(stream, "passed", offer.round)
            return
        if key not in self.journal.weights:
            self.shelf.save_heard(key, offer.row)
            self.journal.ready(key, edge_weight(len(self.neighbours), offer.degree))
        self._ready_at[key] = time.monotonic()
        try:
            await self.wire.send(stream, "ready", offer.round, row=opened.row)
            answer = await self.wire.receive(stream, peer, ("decision",), offer.round)
            self._learn(key, answer.verdict)
            await self.wire.send(stream, "thanks", offer.round)
        finally:
            if key in self.journal.doubts:
                self._spawn(key[1], self._ask_while_open(key))

    async def _ask_while_open(self, key: Key) -> None:
        while self._open is not None and self._open.round == key[0] and key in self.journal.doubts:
            await self._attempt(key[1], self._settle(key[1]))
            await asyncio.sleep(RETRY_SECONDS)

    async def _greet(self, peer: int) -> None:
        async with self.wire.dialled(peer) as stream:
            await self.wire.send(stream, "hello", 0)
            await self.wire.receive(stream, peer, ("hello",))
        await self._settle(peer)

    async def _settle(self, peer: int) -> None:
        """Ask for the decisions that are in doubt."""
        for key in self.journal.doubts:
            if key[1] == peer:
                async with self.wire.dialled(peer) as stream:
                    await self.wire.send(stream, "question", key[0])
                    answer = await self.wire.receive(stream, peer, ("decision",), key[0])
                    self._learn(key, answer.verdict)

    def _verdict(self, key: Key) -> Verdict:
        """The lower number's decision; `out` if there is none of a round that is over."""
        if key not in self.journal.decisions and key[0] >= self.wire.at:
            return "open"
        return "commit" if self.journal.decide(key, False) else "out"

    def _learn(self, key: Key, verdict: Verdict | None) -> None:
        if key in self.journal.weights and verdict in ("commit", "out"):
            self.journal.decide(key, verdict == "commit", self.journal.weights[key])
            self.wire.wake()

    async def _attempt(self, peer: int, work: Awaitable[None]) -> None:
        """Talk to a neighbour who may not be there, or not as it should be."""
        try:
            await work
        except MessageRefused as error:
            self.wire.counts.refuse(peer, error)
        except LOST:
            pass

    def _spawn(self, peer: int, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._attempt(peer, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
