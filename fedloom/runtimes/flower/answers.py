"""What of a client's answer to a round counts."""

from __future__ import annotations

from typing import Any

from fedloom.federation.algorithm import Algorithm
from fedloom.federation.update import Update, decode_update, payload_like
from fedloom.model.bank import Row
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.rows import Unfit, unpack

_COUNTS = ("examples", "correct", "labels", "tokens", "steps")


_MOST = 2**53
"""Whole numbers up to this are exact in floating point."""


def read_update(
    reply: Content,
    client: int,
    round_: int,
    trained: Row,
    examples: int,
    algorithm: Algorithm,
    rule: Row,
) -> Update:
    """A client's answer, judged. Whether its numbers are finite is for the aggregation to see.

    Args:
        reply: What came.
        client: Whose answer it should be.
        round_: Which round's.
        trained: The parameters that were to be trained.
        examples: As many was it asked to train on, at most: its weight in the mean.
        algorithm: The run's.
        rule: What was sent for the clients' rule.

    Raises:
        Unfit: It is not what was asked for.
    """
    facts = reply.facts
    for name, expected in (("client", client), ("round", round_)):
        if facts.get(name) != expected:
            raise Unfit(f"{name} is {facts.get(name)!r}, not {expected}")
    for name in _COUNTS:
        value = facts.get(name)
        if type(value) is not int or not 0 <= value < _MOST or (name == "examples" and value == 0):
            raise Unfit(f"{name} is {value!r}, not a count")
    if facts["examples"] > examples:
        raise Unfit(f"examples is {facts['examples']}, and {examples} were asked for")
    if not 1 <= facts["steps"] <= facts["examples"]:
        raise Unfit(f"steps is {facts['steps']} of {facts['examples']} examples; each has one at least")
    if not facts["correct"] <= facts["labels"] <= facts["tokens"]:
        raise Unfit(
            f"{facts['correct']} of {facts['labels']} labels are right, of {facts['tokens']} tokens in all"
        )
    loss: Any = facts.get("loss")
    if type(loss) not in (float, int) or (isinstance(loss, int) and abs(loss) >= _MOST) or loss < 0:
        raise Unfit(f"loss is {loss!r}, not a loss")
    device = next(iter(trained.values())).device
    payload = unpack(reply.tensors, payload_like(algorithm, client, trained, rule), device, all_of_it=True)
    try:
        decode_update(algorithm, client, payload, trained)
    except (ValueError, KeyError, IndexError) as error:
        raise Unfit(f"its change cannot be decoded ({error})") from None
    counts = {name: facts[name] for name in _COUNTS}
    return Update(client=client, payload=payload, loss=float(loss), **counts)
