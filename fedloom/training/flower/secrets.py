"""A client's side of secure aggregation: what it keeps between the four messages of a round, and refuses."""

from __future__ import annotations

import math
from typing import Any

from fedloom.errors import UserError
from fedloom.federation.update import Update
from fedloom.model.bank import Row
from fedloom.options.flower import FlowerConfig
from fedloom.options.secure import FEWEST
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.masks import begin, masked, reveal, share
from fedloom.runtimes.flower.request import Answer, Request
from fedloom.runtimes.flower.rows import Unfit
from fedloom.training.flower.place import insists

_SECRETS = "secrets"
"""Where what a client keeps has its keys, beside the adapter."""


def secret_step(request: Request, client: int, config: FlowerConfig) -> Answer:
    """Answer a message of a round that is not about training: keys, shares, or what unmasks the sum.

    Raises:
        UserError: The run has no secure aggregation.
        Unfit: The message is not the next of the round, or asks for what would unmask a single client.
    """
    if config.secure_aggregation is None:
        raise UserError("the server plays secure aggregation, and the run config has none")
    facts = request.content_.facts
    if facts["stage"] == "keys":
        kept, reply = begin()
        return _answer(request, {**kept, "secret": facts["secret"], "next": "shares"}, reply)
    kept = _kept(request, facts["stage"])
    if facts["stage"] == "shares":
        # What the owner of a client insists on, no option of the server's takes back.
        alone = config.privacy == "user" and not insists(request.node)
        fewest = 1 if alone else FEWEST
        kept, reply = share(kept, client, facts["public"], fewest)
        return _answer(request, {**kept, "next": "masked"}, reply)
    reply = reveal(kept, client, facts["sealed"], facts["there"], facts["gone"])
    return _answer(request, None, reply)


def hidden(request: Request, client: int, update: Update, remark: str) -> tuple[Row, dict[str, Any]]:
    """What a client sends in place of its change, and what it keeps of the round beside the adapter.

    Args:
        request: What the server asks.
        client: Its number.
        update: What came of its training.
        remark: Behind what is said of numbers that are not finite.

    Raises:
        UserError: Its numbers are not finite: it takes no part in the sum.
        Unfit: The message is not the next of the round.
    """
    if not math.isfinite(update.loss):
        raise UserError(f"its loss or change is not finite{remark}")
    kept = _kept(request, "masked")
    payload = masked(kept, client, update.payload, request.content_.facts["others"])
    return payload, {_SECRETS: {**kept, "next": "reveal"}}


def _kept(request: Request, stage: str) -> dict[str, Any]:
    """The secrets of the round that a message is of, where the stage is the next; each is played once.

    Raises:
        Unfit: There are none.
    """
    kept = request.kept.facts.get(_SECRETS) or {}
    if kept.get("secret") != request.content_.facts.get("secret") or kept.get("next") != stage:
        raise Unfit("it has no secrets for this step of the round")
    return kept


def _answer(request: Request, kept: dict[str, Any] | None, reply: dict[str, Any]) -> Answer:
    facts = {name: value for name, value in request.kept.facts.items() if name != _SECRETS}
    if kept is not None:
        facts[_SECRETS] = kept
    return Answer(Content(reply), kept=Content(facts, request.kept.tensors))
