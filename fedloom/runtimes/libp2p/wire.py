"""Messages on streams: encoded, decoded, counted; and what every message says of its sender."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fedloom.model.bank import Row
from fedloom.runtimes.libp2p.counts import Counts
from fedloom.runtimes.libp2p.messages import Expected, Kind, Message, Verdict, decode, encode
from fedloom.runtimes.libp2p.schema import MessageRefused
from fedloom.runtimes.libp2p.statements import Signer, Statement
from fedloom.runtimes.libp2p.transport import Stream, Transport

RETRY_SECONDS = 0.25
LOST = (OSError, EOFError, TimeoutError)
"""What comes of a neighbour that is not there, or no longer."""


@dataclass
class Wire:
    """A peer's end of all its streams.

    Attributes:
        number: This peer, from 1.
        degree: How many neighbours it has.
        expected: What all messages have in common.
        transport: How neighbours are reached.
        timeout: Seconds that a message may take.
        signer: What this peer signs with.
        identities: Of the neighbours, by their numbers.
        at: The round that this peer is in, from 1; one more than there are when all are done.
        heard: For each neighbour the round that it was in last, and since when this is known.
        present: Neighbours that have said something since they were last missed.
        counts: Bytes and refusals so far.
    """

    number: int
    degree: int
    expected: Expected
    transport: Transport
    timeout: float
    signer: Signer
    identities: Mapping[int, str]
    at: int = 1
    heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Let everybody who waits in `change` look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seconds: float | None = None) -> None:
        """Wait until something has changed, or so long."""
        waiting = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([waiting], timeout=seconds)
        finally:
            waiting.cancel()

    @asynccontextmanager
    async def dialled(self, peer: int) -> AsyncIterator[Stream]:
        """A stream to a neighbour."""
        stream = await asyncio.wait_for(self.transport.dial(peer), self.timeout)
        try:
            yield stream
        finally:
            stream.close()

    async def send(
        self,
        stream: Stream,
        kind: Kind,
        round_: int,
        *,
        verdict: Verdict | None = None,
        row: Row | None = None,
        said: Statement | None = None,
        basis: int = 0,
        layers: str = "",
        starts: int = 0,
    ) -> None:
        """Send a message; rounds count from 1."""
        about = (verdict, row, said, basis, layers, starts)
        message = Message(kind, self.number, round_, self.at, self.degree, *about)
        frame = encode(message, self.expected)
        await asyncio.wait_for(stream.send(frame), self.timeout)
        self.counts.messages_up += len(frame)
        self.counts.rows_up += self._numbers(message)

    async def receive(
        self,
        stream: Stream,
        peer: int,
        kinds: tuple[Kind, ...],
        round_: int | None = None,
        *,
        oldest: int = 0,
        wait: bool = False,
    ) -> Message:
        """The next message of a stream.

        Args:
            stream: Whose other end is the neighbour.
            peer: Its number.
            kinds: What it may be.
            round_: What it must be about, where that is known.
            oldest: The first round of which an offer is still of use.
            wait: For as long as it takes.

        Raises:
            MessageRefused: It is not as it must be.
            TimeoutError: It took too long.
            EOFError, OSError: The stream has ended.
        """
        receiving = stream.receive(self.expected.schema.body_limit)
        frame = await asyncio.wait_for(receiving, None if wait else self.timeout)
        self.counts.messages_down += len(frame)
        message = decode(frame, self.expected, peer, oldest)
        if message.kind not in kinds:
            raise MessageRefused("format", f"a {message.kind} where {' or '.join(kinds)} was due")
        if round_ is not None and message.round != round_:
            raise MessageRefused("round", f"round {message.round} instead of {round_}")
        if message.said is not None and not message.said.holds(
            self.expected.run, peer, self.identities.get(peer, "")
        ):
            raise MessageRefused("signature", "it has not signed what it says of its row")
        self.counts.rows_down += self._numbers(message)
        self._note(peer, message.at)
        return message

    def _numbers(self, message: Message) -> int:
        """Bytes of what a message tells: a row's, or a vote's or choice's."""
        if message.row is not None:
            return self.expected.schema_of(message.layers).row_bytes
        return len(message.layers) // 2

    def _note(self, peer: int, at: int) -> None:
        before, _ = self.heard.get(peer, (0, 0.0))
        if at > before:  # two streams may overtake each other
            self.heard[peer] = (at, time.monotonic())
        if at > before or peer not in self.present:
            self.present.add(peer)
            self.wake()
