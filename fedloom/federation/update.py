"""What a client sends of a round: its change as the codec has it, and what its rule sends beside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fedloom.federation.algorithm import RESIDUAL, SENT, Algorithm, part_of, with_prefix
from fedloom.federation.codecs import feedback
from fedloom.federation.privacy.user import UNCLIPPED, clipped
from fedloom.model.bank import AdapterBank, Row, bytes_of


@dataclass(frozen=True)
class Update:
    """One client's answer to a round.

    Attributes:
        client: Which client.
        payload: What it sends: its change as the codec has it, and what its rule sends.
        examples: Examples it trained on; its weight in the mean.
        loss: Mean training loss.
        correct: Answer tokens predicted right while training.
        labels: Answer tokens seen.
        tokens: Tokens that went through the model.
        steps: Steps of its optimiser; 0 where nobody knows, as of a secure sum.
        memory: What it keeps until its next round; never sent. Over a network it is empty here.
        norm: Euclidean length of its change; known once it has been decoded.
    """

    client: int
    payload: Row
    examples: int
    loss: float
    correct: int
    labels: int
    tokens: int
    steps: int = 0
    memory: Row = field(default_factory=dict)
    norm: float = math.nan

    @property
    def bytes(self) -> int:
        """What it sends, as it crosses the wire."""
        return bytes_of(self.payload)


def encode_update(
    algorithm: Algorithm, client: int, delta: Row, sent: Row, memory: Row, seed: int, clip: float = math.inf
) -> tuple[Row, Row]:
    """What a client sends, and what it remembers of it.

    Args:
        algorithm: Which.
        client: Which client.
        delta: Its change of the shared parameters.
        sent: What its rule sends.
        memory: What it remembers.
        seed: What the codec's random choices depend on.
        clip: Largest norm of a change, where the algorithm is private; see `privacy.user`.

    Returns:
        The payload, and the memory.
    """
    delta, within = clipped(delta, clip)
    lost = algorithm.sent(part_of(memory, RESIDUAL), client)
    payload, residual = feedback(algorithm.codec, algorithm.sent(delta, client), lost, seed)
    payload = payload | with_prefix(SENT, algorithm.sent(sent, client)) | _whether_within(algorithm, within)
    return payload, memory | with_prefix(RESIDUAL, algorithm.padded(residual))


def _whether_within(algorithm: Algorithm, within: bool) -> Row:
    """What a payload says of the clip."""
    adapts = algorithm.privacy is not None and algorithm.privacy.quantile is not None
    return {UNCLIPPED: torch.tensor(within, dtype=torch.uint8)} if adapts else {}


def payload_like(algorithm: Algorithm, client: int, like: Row, received: Row | None = None) -> Row:
    """A payload of the names, shapes and dtypes that one from a client has.

    Args:
        algorithm: Which.
        client: Which client.
        like: The parameters that are to be trained.
        received: What the server sent for the rule; None: among peers, whose ``like`` has what it sends.
    """
    zeros = {name: torch.zeros_like(t) for name, t in algorithm.sent(like, client).items()}
    if algorithm.secure is not None:
        return algorithm.secure.like(zeros)
    sent = {} if received is None else _sent_by_rule(algorithm, like, received)
    beside = with_prefix(SENT, algorithm.sent(sent, client)) | _whether_within(algorithm, True)
    return algorithm.codec.encode(zeros, 0) | beside


def _sent_by_rule(algorithm: Algorithm, like: Row, received: Row) -> Row:
    """What the rule of a client that has not moved sends: of the names, shapes and dtypes of any client's."""
    bank, rule = AdapterBank.repeat(like, 1), algorithm.rule
    memory = {name: t[None] for name, t in rule.memory(like).items()}
    _, sent = rule.finish(bank, bank, torch.ones(1, dtype=torch.long), memory, received)
    return {name: t[0] for name, t in sent.items()}


def decode_update(algorithm: Algorithm, client: int, payload: Row, like: Row) -> tuple[Row, Row]:
    """A client's change of the server's adapter, and what its rule sent.

    Args:
        algorithm: Which.
        client: Which client.
        payload: What came.
        like: The server's adapter, of the parameters that were to be trained.

    Raises:
        ValueError: It is not what was asked for.
        KeyError: The same.
    """
    coded = {name: t for name, t in payload.items() if name != UNCLIPPED and not name.startswith(SENT)}
    delta = algorithm.codec.decode(coded, algorithm.sent(like, client))
    if algorithm.ranks is not None:
        delta = algorithm.ranks.change(like, delta, client)
    return delta, algorithm.padded(part_of(payload, SENT))
