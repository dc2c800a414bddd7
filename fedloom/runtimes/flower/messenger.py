"""`federation.server.Train` over Flower: what each client must be told, and what of its answer counts.

Parameters that a round does not train are part of the model too. The server knows which version of each one
a client holds, the round of its last change, and sends what has changed since. A client that holds something
else (it was restarted) says so, and gets everything.

What a client remembers for the algorithm stays on its own machine. It keeps one version for each round, and
is told which one counts: that of its last answer which the server took, as of the server's checkpoint where
the run was resumed. So an answer that was lost on its way changes nothing at either end.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fedloom.errors import UserError
from fedloom.federation.algorithm import RULE, Algorithm, with_prefix
from fedloom.federation.update import Update, payload_like
from fedloom.model.bank import Row, bytes_of
from fedloom.options.secure import FEWEST
from fedloom.runtimes.flower.answers import read_update
from fedloom.runtimes.flower.connected_clients import ConnectedClients, Replies
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.messages import quoted
from fedloom.runtimes.flower.rows import Unfit, mask_of, pack
from fedloom.runtimes.flower.secure_round import SecureRound

log = logging.getLogger(__name__)


@dataclass
class Delivery:
    """What a round has sent and got.

    Attributes:
        bytes_down, bytes_up: Of adapters, all clients together, with what says which parts train.
        lost: Clients that did not answer, or with an error.
        refused: Clients whose answer was not what was asked for.
        forgot: Clients that no longer had what they should remember, and began anew.
        taken: By client, the word of its last answer that counts.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    lost: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    forgot: list[int] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _LastSent:
    """What a client holds: a word for it that the client knows too, and the version of each parameter."""

    word: str
    versions: dict[str, int]


@dataclass
class RoundMessenger:
    """Carries rounds to the clients that are connected.

    Attributes:
        connected: The clients.
        round_timeout: Seconds for a round's answers.
        examples: As many examples is a client asked to train on in a round, at most.
        algorithm: The run's.
        kept_from: Rounds done at the run's last checkpoint: clients keep their versions since then.
    """

    connected: ConnectedClients
    round_timeout: float
    examples: int
    algorithm: Algorithm
    kept_from: int = 0
    _run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _latest: Row = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)
    _last_sent: dict[int, _LastSent] = field(default_factory=dict)
    _packed: dict[frozenset[tuple[str, torch.Size]], bytes] = field(
        default_factory=dict
    )  # most clients lack the same

    def train(
        self,
        round_: int,
        clients: Sequence[int],
        trained: Row,
        frozen: Row,
        rule: Row,
        drawn: Sequence[int],
        delivery: Delivery,
        clip: float = math.inf,
    ) -> Iterator[Update]:
        """Let clients train, and hand over their updates in the order of the clients.

        Args:
            round_: Rounds done.
            clients: Who takes part; all are there.
            trained: What they train and send back.
            frozen: What they only use.
            rule: What goes with it for the clients' rule.
            drawn: Batches that each client of the federation has drawn so far.
            delivery: Is told what was sent, what came, and who did not answer; knows which answers were
                taken.
            clip: Largest norm of a change, where the algorithm is private; who answered is then told nobody.

        Raises:
            UserError: Nobody answered, or nobody what was asked for.
        """
        self._note_changes(round_, trained | frozen)
        content_of = partial(self._content, round_, trained, rule, drawn, delivery, clip)
        if self.algorithm.secure is not None:
            if clients:
                yield self._summed(round_, clients, trained, rule, content_of, delivery)
            return
        until = time.monotonic() + self.round_timeout
        replies = self._ask({k: content_of(k) for k in clients}, self.round_timeout, content_of, until)
        for client, why in sorted(replies.failures.items()):
            replies.contents.pop(client, None)
            self._last_sent.pop(client, None)
            delivery.lost.append(client)
            log.warning("round %d goes on without client %d: %s", round_ + 1, client + 1, why)
        reasons = set(replies.failures.values())
        word = self._word(round_)
        answered = False
        for client in sorted(replies.contents):
            reply = replies.contents.pop(client)
            try:
                update = read_update(reply, client, round_, trained, self.examples, self.algorithm, rule)
            except Exception as error:  # whatever it is, this client's answer is at fault and nobody else's
                why = (
                    quoted(error) if isinstance(error, Unfit) else quoted(f"{type(error).__name__}: {error}")
                )
                self._last_sent.pop(client, None)
                delivery.refused.append(client)
                delivery.bytes_up += len(reply.tensors)
                reasons.add(why)
                log.warning("round %d: client %d's answer is refused: %s", round_ + 1, client + 1, why)
                continue
            delivery.bytes_up += update.bytes
            delivery.taken[client] = word
            if reply.facts.get("forgot"):
                delivery.forgot.append(client)
            self._last_sent[client] = _LastSent(word, dict(self._versions))
            answered = True
            yield update
        if not answered and self.algorithm.privacy is None:
            listed = "; ".join(sorted(reasons))
            raise UserError(
                f"round {round_ + 1}: no client answered ({listed}); go on later with resume=true"
            )

    def _summed(
        self,
        round_: int,
        clients: Sequence[int],
        trained: Row,
        rule: Row,
        content_of: Callable[[int], Content],
        delivery: Delivery,
    ) -> Update:
        """One update that stands for those of all clients, of which nothing else is learned.

        Raises:
            UserError: Too few answered.
        """
        assert self.algorithm.secure is not None
        until = time.monotonic() + self.round_timeout

        def with_facts(client: int, facts: dict[str, Any]) -> Content:
            made = content_of(client)
            return Content({**made.facts, **facts}, made.tensors)

        def ask(contents: Mapping[int, Content]) -> Replies:
            def again(k: int) -> Content:
                return with_facts(k, {name: contents[k].facts[name] for name in ("secret", "others")})

            return self._ask(contents, max(until - time.monotonic(), 1.0), again, until)

        fewest = 1 if self.algorithm.privacy is not None else FEWEST
        played = SecureRound(ask, self._word(round_), fewest)
        like = payload_like(self.algorithm, 0, trained, rule)
        try:
            total, there = played.play(clients, with_facts, like)
        finally:
            for client in played.failures:
                self._last_sent.pop(client, None)
            delivery.lost += sorted(played.failures)
            delivery.bytes_up += played.bytes_up
            delivery.bytes_down += played.bytes_down
        for client in there:
            delivery.taken[client] = self._word(round_)
            self._last_sent[client] = _LastSent(self._word(round_), dict(self._versions))
        delivery.forgot += played.forgot
        try:
            _, counts = self.algorithm.secure.decode(total, trained)
        except ValueError as error:
            raise UserError(
                f"secure_aggregation: {error}: a client sent other counts than those of its round; go on "
                "later with resume=true"
            ) from None
        known = {name: value for name, value in vars(counts).items() if name != "clients"}
        return Update(client=there[0], payload=total, **known)

    def _ask(
        self, contents: Mapping[int, Content], seconds: float, again: Callable[[int], Content], until: float
    ) -> Replies:
        """What clients answer; those that lack what they should hold are asked again, with everything."""
        replies = self.connected.ask(contents, seconds)
        if lacking := [k for k, reply in replies.contents.items() if reply.facts.get("lacks")]:
            for client in lacking:
                self._last_sent.pop(client, None)
            second = self.connected.ask({k: again(k) for k in lacking}, max(until - time.monotonic(), 1.0))
            replies.contents.update(second.contents)
            replies.failures.update(second.failures)
        return replies

    def _note_changes(self, round_: int, whole: Row) -> None:
        for name, t in whole.items():
            if name not in self._latest or not torch.equal(t, self._latest[name]):
                self._versions[name] = round_
        self._latest = {name: t.clone() for name, t in whole.items()}
        self._packed.clear()

    def _word(self, round_: int) -> str:
        return f"{self._run}-{round_}"

    def _content(
        self,
        round_: int,
        trained: Row,
        rule: Row,
        drawn: Sequence[int],
        delivery: Delivery,
        clip: float,
        client: int,
    ) -> Content:
        last = self._last_sent.get(client)
        versions = last.versions if last else {}
        news = {name: t for name, t in self._latest.items() if versions.get(name) != self._versions[name]}
        news, rule = self.algorithm.sent(news, client), self.algorithm.sent(rule, client)
        packed = news | with_prefix(RULE, rule)
        shapes = frozenset((name, t.shape) for name, t in packed.items())
        if shapes not in self._packed:
            self._packed[shapes] = pack(packed)
        mask = mask_of(sorted(self._latest), trained)
        delivery.bytes_down += bytes_of(news) + bytes_of(rule) + len(mask) // 2
        facts = {
            "round": round_,
            "client": client,
            "drawn": drawn[client],
            "trained": mask,
            "held": last.word if last else None,
            "word": self._word(round_),
            "remembers": delivery.taken.get(client),
            "kept_from": self.kept_from,
            "clip": clip if math.isfinite(clip) else None,
        }
        return Content(facts, self._packed[shapes])
