"""The clients behind Flower's grid as the server sees them: who is there, and parcels to and from them.

A node counts as a client once it has answered who it is. One that does not answer in time, or not well, is
asked again, and counts again when it answers: that is how a node that was restarted comes back. Whatever is
wrong with a client's answer is that client's failure and ends nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode

from fedloom.errors import UserError
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.keys import Keys
from fedloom.runtimes.flower.messages import from_records, quoted, to_records
from fedloom.runtimes.flower.post import Post

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.3
_SECONDS_UNTIL_ASKED_AGAIN = 60
_NO_ANSWER = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
"""What Flower says of a node that is gone or was ended; other errors are the app's own."""


@dataclass(frozen=True)
class Replies:
    """What a round's messages brought.

    Attributes:
        contents: By client.
        failures: By client, why there is none.
    """

    contents: dict[int, Content]
    failures: dict[int, str]


class _Failed(Exception):
    """There is nothing to read in an answer; the message says why."""


@dataclass
class ConnectedClients:
    """The nodes of a run.

    Attributes:
        post: Messages to nodes.
        introduction: What a node is asked to say who it is.
        admit: Reads the answer: the client's number.
        patience: Seconds for which such a question stands.
        keys: Whose each number is; None: whoever gives it.
        enter: Is told who is there and what it answered, before it counts; may refuse it by a `UserError`.
        check: Is given a client's answer in a round, and may refuse that: the client is then asked again who
            it is.
    """

    post: Post
    introduction: Content
    admit: Callable[[Content], int]
    patience: float
    keys: Keys | None
    enter: Callable[[int, Content], None] = lambda client, content_: None
    check: Callable[[int, Content], None] = lambda client, content_: None
    _nodes: dict[int, int] = field(default_factory=dict)  # client → node
    _public: dict[int, bytes] = field(default_factory=dict)  # node → its key
    _asked: dict[str, tuple[int, float]] = field(default_factory=dict)  # message → node, until when
    _refused: dict[int, tuple[str, float]] = field(default_factory=dict)  # node → why, until when

    @property
    def clients(self) -> list[int]:
        """Who is there, in ascending order."""
        return sorted(self._nodes)

    def wait_for(self, wanted: int, at_least: int) -> None:
        """Look who is there until there are enough, or patience ends.

        A node that cannot take part does not end the wait, or one of them could keep a run from beginning.
        Only where as many as are wanted cannot, and nobody can, is it a mistake that all have in common.

        Args:
            wanted: As many are waited for.
            at_least: As many are needed.

        Raises:
            UserError: There are too few, or nobody can take part.
        """
        until = time.monotonic() + self.patience
        self.look()
        before = None
        while len(self._nodes) < wanted and time.monotonic() < until:
            if not self._nodes and len(self._refused) >= wanted:
                raise UserError(f"SuperNodes that cannot take part:{self._reasons()}")
            if before != (before := len(self._nodes)):
                log.warning("waiting for clients: %d of %d are there", before, wanted)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            self.look()
        if len(self._nodes) < at_least:
            refused = f"\nSuperNodes that cannot take part:{self._reasons()}" if self._refused else ""
            raise UserError(
                f"{len(self._nodes)} clients are there after {self.patience:g} seconds, and min_clients asks "
                f"for {at_least}; start more SuperNodes, raise join_timeout or lower min_clients{refused}"
            )

    def _reasons(self) -> str:
        return "".join(f"\n- {why}" for why in sorted({why for why, _ in self._refused.values()}))

    def look(self) -> None:
        """See who has gone, ask who is new, and read what has been answered; nobody is waited for."""
        self._public = {node.node_id: node.public_key for node in self.post.grid.get_nodes()}
        for client in [client for client, node in self._nodes.items() if node not in self._public]:
            del self._nodes[client]
            if self.keys is not None:
                self.keys.left(client)
            log.warning("client %d is no longer connected", client + 1)
        now = time.monotonic()
        self._refused = {
            node: (why, until)
            for node, (why, until) in self._refused.items()
            if node in self._public and until > now
        }
        self._asked = {message: asked for message, asked in self._asked.items() if asked[1] > now}
        known = {*self._nodes.values(), *self._refused, *(node for node, _ in self._asked.values())}
        questions = [
            Message(to_records(self.introduction), node, MessageType.QUERY, ttl=self.patience)
            for node in sorted(self._public.keys() - known - self.post.busy)
        ]
        self.post.send(questions)
        for question in questions:
            self._asked[question.metadata.message_id] = (question.metadata.dst_node_id, now + self.patience)
        for came in self.post.collect({message: node for message, (node, _) in self._asked.items()}):
            node, _ = self._asked.pop(came.question)
            self._introduced(node, came.answer)

    def ask(self, contents: Mapping[int, Content], seconds: float) -> Replies:
        """Send each client its content, and wait for what comes back.

        Args:
            contents: By client.
            seconds: How long.
        """
        messages = {
            client: Message(to_records(content_), self._nodes[client], MessageType.TRAIN, ttl=seconds)
            for client, content_ in contents.items()
        }
        self.post.send(list(messages.values()))
        waiting = {message.metadata.message_id: client for client, message in messages.items()}
        replies = Replies({}, {})
        until = time.monotonic() + seconds
        while waiting:
            for came in self.post.collect({id_: self._nodes[k] for id_, k in waiting.items()}):
                client = waiting.pop(came.question)
                try:
                    content_ = _content_of(came.answer)
                    self.check(client, content_)
                    replies.contents[client] = content_
                except (UserError, _Failed) as error:
                    replies.failures[client] = str(error)
            if time.monotonic() > until:
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS if waiting else 0)
        replies.failures.update({client: f"no answer in {seconds:g} seconds" for client in waiting.values()})
        for client in replies.failures:
            self._nodes.pop(client, None)
        return replies

    def _introduced(self, node: int, answer: Message | Exception | None) -> None:
        if isinstance(answer, Message) and answer.has_error() and answer.error.code in _NO_ANSWER:
            return  # it is asked again while it is there
        try:
            content_ = _content_of(answer)
            client = self.admit(content_)
            if self.keys is not None:
                self.keys.claim(client, self._public.get(node, b""))
            if client in self._nodes:
                raise _Failed(f"client {client + 1} is claimed by two SuperNodes; give each its own number")
            self.enter(client, content_)
        except (UserError, _Failed) as error:
            why = str(error)
            log.warning("SuperNode %d cannot take part: %s", node, why)
            self._refused[node] = (why, time.monotonic() + _SECONDS_UNTIL_ASKED_AGAIN)
            return
        self._nodes[client] = node


def _content_of(answer: Message | Exception | None) -> Content:
    """What a client sent.

    Raises:
        _Failed: That it failed, or what cannot be read.
    """
    try:
        if not isinstance(answer, Message):
            raise _Failed(f"its answer cannot be read ({type(answer).__name__}: {quoted(answer)})")
        if answer.has_error():
            raise _Failed(quoted(answer.error.reason or "an error without a reason"))
        content_ = from_records(answer.content)
    except _Failed:
        raise
    except Exception as error:  # Flower reads some of it only now
        raise _Failed(f"its answer cannot be read ({quoted(error)})") from None
    if "mistake" in content_.facts:
        raise _Failed(quoted(content_.facts["mistake"]))
    return content_
