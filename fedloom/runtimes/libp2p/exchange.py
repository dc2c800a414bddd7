"""The exchange of rows of a round with all neighbours: who is waited for, and for how long.

A neighbour is waited for `timeout` seconds, and after that not again until it says something. One that comes
into the round or is ready in this time has the whole time from then, and nobody more than that: whatever a
neighbour says or repeats, a round waits for it twice as long at most. One that says to be in a later round is
not waited for, nor one that `patience` has set aside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from fedloom.model.bank import Row
from fedloom.runtimes.libp2p.edges import Edges
from fedloom.runtimes.libp2p.journal import Key
from fedloom.runtimes.libp2p.messages import Message
from fedloom.runtimes.libp2p.opened import Offered, Open
from fedloom.runtimes.libp2p.patience import Patience
from fedloom.runtimes.libp2p.polls import Poll
from fedloom.runtimes.libp2p.statements import Statement
from fedloom.runtimes.libp2p.wire import RETRY_SECONDS

log = logging.getLogger(__name__)


class Exchange:
    """One peer and all its edges, round by round; all in one event loop."""

    def __init__(self, edges: Edges, neighbours: Collection[int]) -> None:
        """Nothing is said or answered before `start`.

        Args:
            edges: This peer's side of its edges.
            neighbours: The numbers of those at the other ends.
        """
        self.edges, self.neighbours = edges, sorted(neighbours)
        self.wire, self.journal = edges.wire, edges.journal
        self.patience = Patience()

    async def start(self) -> None:
        """Answer neighbours from now on."""
        await self.wire.transport.serve(self.edges.serve, self.wire.counts.refuse_stranger)

    async def meet(self) -> None:
        """Say hello to all neighbours, until all have said something, or the timeout is over."""

        async def until_heard(peer: int) -> None:
            while peer not in self.wire.present:
                if await self.edges.attempts.attempt(self.edges.greet, peer):
                    return
                await self.wire.change(RETRY_SECONDS)

        with suppress(TimeoutError):
            async with asyncio.timeout(self.wire.timeout), asyncio.TaskGroup() as greetings:
                for peer in self.neighbours:
                    greetings.create_task(until_heard(peer))
        silent = [str(peer) for peer in self.neighbours if peer not in self.wire.present]
        if silent:
            log.warning(
                "not heard from peers %s; goes on without them until they say hello", ", ".join(silent)
            )

    async def begin(self, round_: int) -> None:
        """Enter a round, and tell the neighbours; nobody is waited for."""
        self.wire.at = round_
        self.wire.wake()
        for peer in self.neighbours:
            self.edges.attempts.spawn(self.edges.greet, peer)

    async def poll(self, poll: Poll, round_: int, layers: str, among: Collection[int]) -> dict[int, Message]:
        """Tell neighbours something of this round, and hear the same of those who are there in time.

        Args:
            poll: What.
            round_: The round that this peer is in.
            layers: What it tells.
            among: Whom; nobody else is waited for.
        """
        polls, began = self.edges.polls, time.monotonic()
        # Before it chooses a neighbour may itself have to wait for somebody's vote.
        latest = began + self.wire.timeout * (poll == "choice")

        def waited_for(peer: int) -> bool:
            return (
                polls.heard(poll, peer, round_) is None
                and peer in self.wire.present
                and self.wire.heard[peer][0] <= round_
                and self.patience.waits_for(peer, round_)
                and time.monotonic() < self._deadline(peer, round_, latest)
            )

        for peer in among:
            self.edges.attempts.spawn(polls.tell, peer, poll, round_, layers)
        spent: dict[int, float] = {}
        while waited := [peer for peer in among if waited_for(peer)]:
            ends = min(self._deadline(peer, round_, latest) for peer in waited)
            await self.wire.change(max(0.0, ends - time.monotonic()))
            spent |= dict.fromkeys(waited, time.monotonic() - began)
            self.edges.check()
        heard = {peer: message for peer in among if (message := polls.heard(poll, peer, round_))}
        for peer in spent.keys() - heard.keys():
            self.wire.present.discard(peer)
            self._remember(peer, round_, spent[peer])
        return heard

    def recover(self, round_: int) -> None:
        """Settle the edges of a round in which this process was killed, before `start` and `swap`."""
        self.wire.at = round_
        for peer in self.neighbours:
            self._give_up((round_, peer))

    async def swap(
        self,
        round_: int,
        offered: Mapping[int, Offered],
        said: Statement,
        fits: Callable[[int, Row], bool] = lambda peer, row: True,
    ) -> None:
        """Exchange rows with everybody who is there in time.

        Afterwards the journal has a decision for every edge, except where it is in doubt.

        Args:
            round_: Which round, from 1.
            offered: What each neighbour is sent, of the row that this peer trained, and saved.
            said: What it says of it, in the journal already.
            fits: Whether what a neighbour sends can be combined.
        """
        self.edges.check()
        self.edges.ready_at.clear()
        opened = self.edges.opened = Open(round_, offered, said, time.monotonic(), fits)
        offers = {
            peer: self.edges.attempts.spawn(self.edges.keep_offering, peer, opened)
            for peer in self.neighbours
            if peer > self.wire.number and peer in offered
        }
        self.wire.wake()
        spent: dict[int, float] = {}  # seconds that a neighbour was waited for
        while waited := [peer for peer in self.neighbours if self._waited_for(peer, opened)]:
            ends = min(self._deadline(peer, round_, opened.began) for peer in waited)
            await self.wire.change(max(0.0, ends - time.monotonic()))
            spent |= dict.fromkeys(waited, time.monotonic() - opened.began)
            self.edges.check()
        self.edges.opened = None
        for peer in self.neighbours:
            if (round_, peer) not in self.journal.decisions:
                if peer in offered:
                    self.wire.present.discard(peer)
                self._give_up((round_, peer))
                if peer in offers:
                    offers[peer].cancel()
            self._remember(peer, round_, spent.get(peer, 0.0))
        self.wire.wake()

    async def finish(self, last: int) -> None:
        """After a peer's last round: ask and answer questions, until nobody needs it or the timeout is over.

        Args:
            last: The round.
        """
        await self.begin(last + 1)
        ends = time.monotonic() + self.wire.timeout
        while (left := ends - time.monotonic()) > 0 and (
            self.journal.doubts
            or self.edges.unacknowledged
            or any(self.wire.heard[peer][0] <= last for peer in self.wire.present)
        ):
            for peer in {key[1] for key in self.journal.doubts}:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.edges.attempts.attempt(self.edges.settle, peer), left)
            await self.wire.change(min(left, RETRY_SECONDS))
            self.edges.check()

    def _give_up(self, key: Key) -> None:
        """Decide `out` where this side may: the lower number always, the higher one before it is ready."""
        if key[1] > self.wire.number or key not in self.journal.weights:
            self.journal.decide(key, False)

    def _remember(self, peer: int, round_: int, seconds: float) -> None:
        """How long a neighbour was waited for, and whether it came of it."""
        if self.journal.decisions.get((round_, peer)):
            self.patience.came(peer)
        elif seconds > self.wire.timeout / 2 and (rounds := self.patience.missed(peer, round_)):
            log.warning("peer %d is not waited for in the next %d rounds: it only lets wait", peer, rounds)

    def _waited_for(self, peer: int, opened: Open) -> bool:
        key = (opened.round, peer)
        if key in self.journal.decisions or peer not in self.wire.present or peer not in opened.offered:
            return False
        if not self.patience.waits_for(peer, opened.round):
            return False
        gone_on = self.wire.heard[peer][0] > opened.round
        if gone_on and key not in self.journal.weights:
            return False
        return time.monotonic() < self._deadline(peer, opened.round, opened.began)

    def _deadline(self, peer: int, round_: int, began: float) -> float:
        """Who has just come into this round, or is ready, has the whole time from then, but once."""
        at, since = self.wire.heard.get(peer, (0, 0.0))
        entered = since if at == round_ else 0.0
        ready = self.edges.ready_at.get((round_, peer), 0.0)
        begins = min(max(began, entered, ready), began + self.wire.timeout)
        return begins + self.wire.timeout
