"""The clients behind Flower's grid as the server sees them: who is there, and parcels to and from them.

A node counts as a client once it has answered who it is. One that does not answer in time, or not well, is
asked again, and counts again when it answers: that is how a node that was restarted comes back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedloom.config import UserError
from fedloom.runtimes.flower.messages import bytes_on_the_wire, from_records, to_records
from fedloom.runtimes.flower.parcel import Parcel

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.3
_NO_ANSWER = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
"""What Flower says of a node that is gone or was ended; other errors are the app's own."""


@dataclass
class Traffic:
    """Bytes of messages that went to clients and came from them, as Flower serialises them."""

    down: int = 0
    up: int = 0


@dataclass(frozen=True)
class Replies:
    """What a round's messages brought.

    Attributes:
        parcels: By client.
        failures: By client, why there is no parcel.
    """

    parcels: dict[int, Parcel]
    failures: dict[int, str]


@dataclass
class Fleet:
    """The nodes of a run.

    Attributes:
        grid: Flower's.
        introduction: What a node is asked to say who it is.
        admit: Reads the answer: the client's number.
        patience: Seconds for which such a question stands.
        traffic: Messages so far.
    """

    grid: Grid
    introduction: Parcel
    admit: Callable[[Parcel], int]
    patience: float
    traffic: Traffic = field(default_factory=Traffic)
    _nodes: dict[int, int] = field(default_factory=dict)  # client → node
    _asked: dict[str, tuple[int, float]] = field(default_factory=dict)  # message → node, until when
    _refused: dict[int, str] = field(default_factory=dict)  # node → why

    @property
    def clients(self) -> list[int]:
        """Who is there, in ascending order."""
        return sorted(self._nodes)

    def wait_for(self, wanted: int, at_least: int, *, strict: bool) -> None:
        """Look who is there until there are enough, or patience ends.

        Args:
            wanted: As many are waited for.
            at_least: As many are needed.
            strict: Whether a node that cannot take part ends the wait.

        Raises:
            UserError: There are too few, or a node cannot take part.
        """
        until = time.monotonic() + self.patience
        self.look()
        told = None
        while len(self._nodes) < wanted and time.monotonic() < until and not (strict and self._refused):
            if told != (told := len(self._nodes)):
                log.warning("waiting for clients: %d of %d are there", told, wanted)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            self.look()
        reasons = "".join(f"\n- {reason}" for reason in sorted(set(self._refused.values())))
        if strict and reasons:
            raise UserError(f"SuperNodes that cannot take part:{reasons}")
        if len(self._nodes) < at_least:
            raise UserError(
                f"{len(self._nodes)} clients are there after {self.patience:g} seconds, and min_clients asks "
                f"for {at_least}; start more SuperNodes, raise join_timeout or lower min_clients{reasons}"
            )

    def look(self) -> None:
        """See who has gone, ask who is new, and read what has been answered; nobody is waited for."""
        present = set(self.grid.get_node_ids())
        for client in [client for client, node in self._nodes.items() if node not in present]:
            del self._nodes[client]
            log.warning("client %d is no longer connected", client + 1)
        self._refused = {node: why for node, why in self._refused.items() if node in present}
        now = time.monotonic()
        self._asked = {message: asked for message, asked in self._asked.items() if asked[1] > now}
        known = {*self._nodes.values(), *self._refused, *(node for node, _ in self._asked.values())}
        questions = [
            Message(to_records(self.introduction), node, MessageType.QUERY, ttl=self.patience)
            for node in sorted(present - known)
        ]
        self._push(questions)
        for question in questions:
            self._asked[question.metadata.message_id] = (question.metadata.dst_node_id, now + self.patience)
        for answer in self._pull(self._asked):
            node, _ = self._asked.pop(answer.metadata.reply_to_message_id)
            self._introduced(node, answer)

    def ask(self, parcels: Mapping[int, Parcel], seconds: float) -> Replies:
        """Send each client its parcel, and wait for what comes back.

        Args:
            parcels: By client.
            seconds: How long.
        """
        messages = {
            client: Message(to_records(parcel), self._nodes[client], MessageType.TRAIN, ttl=seconds)
            for client, parcel in parcels.items()
        }
        self._push(list(messages.values()))
        waiting = {message.metadata.message_id: client for client, message in messages.items()}
        replies = Replies({}, {})
        until = time.monotonic() + seconds
        while waiting:
            for message in self._pull(waiting):
                client = waiting.pop(message.metadata.reply_to_message_id)
                self._take(client, message, replies)
            if time.monotonic() > until:
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS if waiting else 0)
        replies.failures.update({client: f"no answer in {seconds:g} seconds" for client in waiting.values()})
        for client in replies.failures:
            self._nodes.pop(client, None)
        return replies

    def _take(self, client: int, message: Message, replies: Replies) -> None:
        if message.has_error():
            replies.failures[client] = message.error.reason or "an error without a reason"
            return
        try:
            parcel = from_records(message.content)
        except ValueError as error:
            replies.failures[client] = str(error)
            return
        if "mistake" in parcel.facts:
            replies.failures[client] = str(parcel.facts["mistake"])
        else:
            replies.parcels[client] = parcel

    def _introduced(self, node: int, answer: Message) -> None:
        if answer.has_error() and answer.error.code in _NO_ANSWER:
            return  # it is asked again while it is there
        replies = Replies({}, {})
        self._take(node, answer, replies)
        try:
            if node in replies.failures:
                raise UserError(replies.failures[node])
            client = self.admit(replies.parcels[node])
            if client in self._nodes:
                raise UserError(f"client {client + 1} is claimed by two SuperNodes; give each its own number")
        except UserError as error:
            log.warning("SuperNode %d cannot take part: %s", node, error)
            self._refused[node] = str(error)
            return
        self._nodes[client] = node

    def _push(self, messages: list[Message]) -> None:
        if messages:
            self.grid.push_messages(messages)
            self.traffic.down += sum(map(bytes_on_the_wire, messages))

    def _pull(self, waiting: Mapping[str, object]) -> list[Message]:
        if not waiting:
            return []
        found = [
            m for m in self.grid.pull_messages(list(waiting)) if m.metadata.reply_to_message_id in waiting
        ]
        self.traffic.up += sum(map(bytes_on_the_wire, found))
        return found
