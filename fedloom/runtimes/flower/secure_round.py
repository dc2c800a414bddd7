"""A round of secure aggregation as the server plays it: four messages to every client; see `masks`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedloom.errors import UserError
from fedloom.federation.secure_sum import summed
from fedloom.model.bank import Row, bytes_of
from fedloom.runtimes.flower.connected_clients import Replies
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.masks import threshold_of, unmasked
from fedloom.runtimes.flower.messages import quoted
from fedloom.runtimes.flower.rows import Unfit, unpack

log = logging.getLogger(__name__)

Ask = Callable[[Mapping[int, Content]], Replies]
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,200}")
_SEALED = re.compile(r"[A-Za-z0-9_=-]{1,2000}")


@dataclass
class SecureRound:
    """What came of a round.

    Attributes:
        ask: Sends each client a message, and waits for the answers.
        word: The round's, so that no answer is taken for one of another.
        fewest: As many clients hide a single one.
        failures: By client, why its answer is not there or does not count.
        bytes_up, bytes_down: Of keys and shares, and of what is masked.
        forgot: Clients that no longer had what they should remember.
    """

    ask: Ask
    word: str
    fewest: int
    failures: dict[int, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    forgot: list[int] = field(default_factory=list)

    def play(
        self, clients: Sequence[int], train: Callable[[int, dict[str, Any]], Content], like: Row
    ) -> tuple[Row, list[int]]:
        """Learn the sum of what clients send, and nothing else.

        Args:
            clients: Who takes part.
            train: ``(client, facts) -> message`` that lets it train, with these facts in it.
            like: What a client sends, for names, shapes and dtypes.

        Returns:
            The sum, and whose changes are in it.

        Raises:
            UserError: Too few are left for a sum to be learned.
        """
        keys = self._answers("keys", {client: {} for client in clients}, _public_keys)
        public = {str(client): found for client, found in keys.items()}
        self._enough(len(keys), self.fewest)
        sealed = self._answers(
            "shares",
            {client: {"public": public, "fewest": self.fewest} for client in keys},
            lambda client, facts: _sealed(client, facts, public),
        )
        self._enough(len(sealed), threshold_of(len(public)))
        needed = sorted(sealed)
        wanted = {
            client: train(client, {"secret": self.word, "others": [str(j) for j in needed if j != client]})
            for client in needed
        }
        payloads: dict[int, Row] = {}
        for client, reply in self._asked(wanted).items():
            try:
                payloads[client] = unpack(reply.tensors, like, torch.device("cpu"), all_of_it=True)
            except Unfit as error:
                self._fails(client, quoted(error))
                continue
            self.bytes_up += bytes_of(payloads[client])
            if reply.facts.get("forgot"):
                self.forgot.append(client)
        there = sorted(payloads)
        self._enough(len(there), max(threshold_of(len(public)), min(self.fewest, 2)))
        names, gone = [str(j) for j in there], [str(j) for j in needed if j not in payloads]
        revealed = self._answers(
            "reveal",
            {
                client: {
                    "sealed": {str(j): sealed[j][str(client)] for j in needed if j != client},
                    "there": names,
                    "gone": gone,
                }
                for client in there
            },
            lambda client, facts: _shares(facts, {*names, *gone}),
        )
        self._enough(len(revealed), threshold_of(len(public)))
        total = summed([payloads[client] for client in there])
        try:
            return unmasked(total, public, names, gone, list(revealed.values())), there
        except Unfit as error:
            raise UserError(
                f"secure_aggregation: the sum cannot be unmasked: {quoted(error)}; go on later with "
                "resume=true"
            ) from None

    def _answers(
        self,
        stage: str,
        facts: Mapping[int, dict[str, Any]],
        read: Callable[[int, Mapping[str, Any]], Any],
    ) -> dict[int, Any]:
        """What clients answer in a stage, of those whose answer is one."""
        wanted = {
            k: Content({"stage": stage, "secret": self.word, **client_facts})
            for k, client_facts in facts.items()
        }
        self.bytes_down += sum(len(json.dumps(client_facts)) for client_facts in facts.values())
        found = {}
        for client, reply in self._asked(wanted).items():
            try:
                found[client] = read(client, reply.facts)
                self.bytes_up += len(json.dumps(found[client]))
            except Unfit as error:
                self._fails(client, quoted(error))
        return dict(sorted(found.items()))

    def _asked(self, contents: Mapping[int, Content]) -> dict[int, Content]:
        replies = self.ask(contents)
        for client, why in sorted(replies.failures.items()):
            replies.contents.pop(client, None)
            self._fails(client, why)
        return replies.contents

    def _fails(self, client: int, why: str) -> None:
        self.failures[client] = why
        log.warning("the round goes on without client %d: %s", client + 1, why)

    def _enough(self, there: int, needed: int) -> None:
        if there < needed:
            reasons = "; ".join(sorted(set(self.failures.values())))
            raise UserError(
                f"secure_aggregation: {there} clients are left in the round, and {needed} are needed for a "
                f"sum that hides each ({reasons}); go on later with resume=true"
            )


def _public_keys(client: int, facts: Mapping[str, Any]) -> list[str]:
    found = facts.get("public")
    if not (
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(key, str) and len(key) == 64 and _HEX.fullmatch(key) for key in found)
    ):
        raise Unfit("its public keys are none")
    return found


def _sealed(client: int, facts: Mapping[str, Any], public: Mapping[str, Any]) -> dict[str, str]:
    found = facts.get("sealed")
    if not (
        isinstance(found, dict)
        and found.keys() == public.keys() - {str(client)}
        and all(isinstance(text, str) and _SEALED.fullmatch(text) for text in found.values())
    ):
        raise Unfit("it sealed no share for each other client")
    return found


def _shares(facts: Mapping[str, Any], of: set[str]) -> dict[str, str]:
    found = facts.get("shares")
    if not (
        isinstance(found, dict)
        and found.keys() == of
        and all(isinstance(text, str) and _HEX.fullmatch(text) for text in found.values())
    ):
        raise Unfit("it revealed no share of each client")
    return found
