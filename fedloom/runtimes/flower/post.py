"""Messages to nodes and what comes back, each read by itself: one client's is nobody else's trouble."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from flwr.app import Message
from flwr.serverapp import Grid

from fedloom.runtimes.flower.messages import bytes_on_the_wire

_SECONDS_FOR_ONE = 1.0


@dataclass
class Traffic:
    """Bytes of messages that went to clients and came from them, as Flower serialises them."""

    down: int = 0
    up: int = 0


@dataclass(frozen=True)
class Came:
    """What came of a message.

    Attributes:
        question: The message's id.
        answer: The reply, or why it cannot be read; None: it is not there yet.
        size: Bytes of it.
    """

    question: str
    answer: Message | Exception | None
    size: int = 0


@dataclass
class Post:
    """Sends messages and collects the replies.

    Flower reads replies in lots: one that cannot be read would take the others of its lot with it, and one
    whose author never sends all of it would be waited for until the SuperLink gives it up, minutes later.
    So every reply is read by itself, and one that takes long is read on in a thread while others are.

    Attributes:
        grid: Flower's.
        traffic: Messages so far.
    """

    grid: Grid
    traffic: Traffic = field(default_factory=Traffic)
    _nodes: dict[str, int] = field(default_factory=dict)  # message → node, while its reply is being read
    _read: SimpleQueue[Came] = field(default_factory=SimpleQueue)

    @property
    def busy(self) -> set[int]:
        """Nodes of whose replies one is still being read: to ask them more would only add to that."""
        return set(self._nodes.values())

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages; nobody is waited for."""
        if messages:
            self.grid.push_messages(messages)
            self.traffic.down += sum(map(bytes_on_the_wire, messages))

    def collect(self, waiting: dict[str, int]) -> list[Came]:
        """What has come since.

        Args:
            waiting: Messages whose replies are wanted, and the nodes that they went to. Others are dropped.
        """
        for question, node in waiting.items():
            if question not in self._nodes:
                self._nodes[question] = node
                reading = threading.Thread(target=self._receive, args=(question,), daemon=True)
                reading.start()
                reading.join(_SECONDS_FOR_ONE)
        return self._done(waiting)

    def _done(self, waiting: Collection[str]) -> list[Came]:
        found: list[Came] = []
        while True:
            try:
                came = self._read.get_nowait()
            except Empty:
                return found
            del self._nodes[came.question]
            self.traffic.up += came.size
            if came.answer is not None and came.question in waiting:
                found.append(came)

    def _receive(self, question: str) -> None:
        try:
            for reply in self.grid.pull_messages([question]):
                if reply.metadata.reply_to_message_id == question:
                    self._read.put(Came(question, reply, bytes_on_the_wire(reply)))
                    return
            self._read.put(Came(question, None))
        except Exception as error:  # whatever it is, it came of this client's reply
            self._read.put(Came(question, error))
