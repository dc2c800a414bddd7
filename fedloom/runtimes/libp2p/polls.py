"""What neighbours tell each other before they train: votes on layers, and which layers each has selected.

    i → j   vote r, a float32 per layer        when it has entered round r; the other end acknowledges it
    i → j   choice r, a bit per layer          when it has heard its neighbours' votes, or waited for them

Neither is a promise: a round of an edge counts by the agreement on rows (`edges`) alone. What is told is
asked of a neighbour in one round only, so that the newest of each neighbour is kept, and nothing on a disk.
A neighbour that was started again has forgotten it, and is told again; its own choice is in its journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedloom.runtimes.libp2p.messages import Message, chosen_of
from fedloom.runtimes.libp2p.schema import MessageRefused
from fedloom.runtimes.libp2p.transport import Stream
from fedloom.runtimes.libp2p.wire import LOST, RETRY_SECONDS, Wire

Poll = Literal["vote", "choice"]

_OFF_ONE = 1e-3


class Polls:
    """What this peer tells its neighbours, and what they have told it; all in one event loop."""

    def __init__(self, wire: Wire) -> None:
        """Nothing is told yet.

        Args:
            wire: This peer's streams.
        """
        self.wire = wire
        self._newest: dict[tuple[str, int], Message] = {}
        self._acknowledged: dict[tuple[int, Poll], tuple[int, str]] = {}
        self._starts: dict[int, int] = {}

    def heard(self, poll: Poll, peer: int, round_: int) -> Message | None:
        """What a neighbour has told in a round, if it has."""
        newest = self._newest.get((poll, peer))
        return newest if newest is not None and newest.round == round_ else None

    async def hear(self, peer: int, message: Message, stream: Stream) -> None:
        """Keep what a neighbour tells.

        Raises:
            MessageRefused: It is no vote, or no choice of layers.
        """
        count = len(self.wire.expected.layers)
        if message.kind == "vote":
            vote_of(message.layers, count)
        else:
            chosen_of(message.layers, count)
        before = self._newest.get((message.kind, peer))
        if before is None or message.round >= before.round:
            self._newest[message.kind, peer] = message
            self.wire.wake()
        await self.wire.send(stream, "acknowledged", message.round)

    async def tell(self, peer: int, poll: Poll, round_: int, layers: str) -> None:
        """Tell a neighbour something of a round, until it has acknowledged it or the round is over."""
        while self.wire.at == round_:
            if peer not in self.wire.present:
                await self.wire.change()
                continue
            with suppress(*LOST):
                async with self.wire.dialled(peer) as stream:
                    await self.wire.send(stream, poll, round_, layers=layers)
                    await self.wire.receive(stream, peer, ("acknowledged",), round_)
                    self._acknowledged[peer, poll] = round_, layers
                    return
            await asyncio.sleep(RETRY_SECONDS)

    async def tell_again(self, peer: int, starts: int) -> None:
        """Tell a neighbour what it has acknowledged, if it has been started since.

        Args:
            peer: Its number.
            starts: How often it has been started, by its hello.
        """
        if self._starts.setdefault(peer, starts) == starts:
            return
        self._starts[peer] = starts
        # Taken out until it is acknowledged again: however often it says hello, each is told by one task.
        acknowledged = {poll: self._acknowledged.pop((peer, poll), None) for poll in get_args(Poll)}
        await asyncio.gather(*(self.tell(peer, poll, *sent) for poll, sent in acknowledged.items() if sent))


def vote(shares: Sequence[float]) -> str:
    """A vote as it is sent: hexadecimal digits of a float32 per layer."""
    return np.asarray(shares, dtype="<f4").tobytes().hex()


def vote_of(text: str, count: int) -> Float[Tensor, " layers"]:
    """The vote that `vote` was given.

    Raises:
        MessageRefused: These are no shares of so many layers.
    """
    try:
        shares = np.frombuffer(bytes.fromhex(text), dtype="<f4")
    except ValueError:
        raise MessageRefused("format", "a vote that is not in hexadecimal digits") from None
    if (
        len(text) != 8 * count
        or len(shares) != count
        or not (shares >= 0).all()
        or not abs(shares.sum() - 1) < _OFF_ONE
    ):
        raise MessageRefused("format", f"a vote that is no share of each of {count} layers")
    return torch.from_numpy(shares.astype(np.float32))
