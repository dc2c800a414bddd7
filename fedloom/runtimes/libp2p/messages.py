"""What peers send each other: a fixed header as JSON, and a row of the bank as safetensors; never pickle.

A frame on a stream is

    magic and version (4 bytes) | length of header (4) | length of body (8) | header | body

The body is empty, or a row as its `Schema` packs it. Whatever is not exactly as it must be raises
`MessageRefused`, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import struct
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fedloom.model.bank import Row
from fedloom.runtimes.libp2p.run_name import why_another
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema
from fedloom.runtimes.libp2p.statements import Statement

MAGIC = b"FLP\x07"
PREFIX = struct.Struct(">4sIQ")
HEADER_LIMIT = 4096

Kind = Literal["hello", "vote", "choice", "offer", "ready", "passed", "question", "decision", "acknowledged"]
Verdict = Literal["commit", "out", "open"]
WITH_ROW = frozenset({"offer", "ready"})


@dataclass(frozen=True)
class Message:
    """One message; peers count from 1.

    Attributes:
        kind: ``hello`` says where the sender is. ``offer`` has the row of the lower number of an edge,
            ``ready`` that of the higher one, which from then on does not decide alone; ``passed`` refuses an
            offer. ``decision`` ends a round of an edge, also as the answer to ``question``; ``acknowledged``
            ends an offer. ``vote`` and ``choice``: see `polls`.
        sender: Whose message it is.
        round: What it is about; from 1.
        at: The round that the sender is in; one more than there are where it has done all.
        degree: How many neighbours the sender has in the configured graph.
        verdict: Of a decision: ``open`` is not decided yet.
        row: Of an offer or a ready: the sender's trained parameters.
        said: With a row: what the sender says of it.
        basis: With a compressed row: the round of the edge that left what it is a difference from.
        layers: A vote; or a bit for each layer, those that are chosen or that the row has. Hexadecimal
            digits; with a row "" is all layers.
        starts: Of a hello that nobody asked for: how often the sender has been started.
    """

    kind: Kind
    sender: int
    round: int
    at: int
    degree: int
    verdict: Verdict | None = None
    row: Row | None = None
    said: Statement | None = None
    basis: int = 0
    layers: str = ""
    starts: int = 0


@dataclass(frozen=True)
class Expected:
    """What all messages of a run have in common.

    Attributes:
        run: What all peers must agree on, see `run_name`.
        schema: Of rows.
        rounds: How many there are.
        clients: How many peers there are.
        compressed: Whether rows are compressed or cut, for each neighbour by itself: then a statement is of
            the row that was trained, which neighbours do not see.
        layers: The parameters of every layer that a row may lack.
    """

    run: str
    schema: Schema
    rounds: int
    clients: int
    compressed: bool = False
    layers: tuple[Collection[str], ...] = ()

    def schema_of(self, layers: str) -> Schema:
        """The schema of a row that has some layers; see `Message`.

        Raises:
            MessageRefused: That is no choice of layers.
        """
        if not layers:
            return self.schema
        chosen = chosen_of(layers, len(self.layers))
        lacks = (names for names, on in zip(self.layers, chosen, strict=True) if not on)
        return self.schema.without(set().union(*lacks))


def choice(chosen: Sequence[bool]) -> str:
    """A bit for each layer, as hexadecimal digits."""
    return np.packbits(np.asarray(chosen, dtype=bool)).tobytes().hex()


def chosen_of(text: str, count: int) -> list[bool]:
    """The layers that `choice` was given.

    Raises:
        MessageRefused: These are not bits of so many layers.
    """
    try:
        found = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).astype(bool).tolist()
    except ValueError:
        raise MessageRefused("format", "layers that are not in hexadecimal digits") from None
    if len(text) != 2 * -(-count // 8) or len(found) != 4 * len(text) or any(found[count:]):
        raise MessageRefused("format", f"a choice that is not of {count} layers")
    return found[:count]


def encode(message: Message, expected: Expected) -> bytes:
    """A message as a frame."""
    header = {
        "run": expected.run,
        "schema": expected.schema.digest,
        **{name: value for name, value in vars(message).items() if name not in ("row", "said")},
        "said": None if message.said is None else [getattr(message.said, name) for name in _SAID],
    }
    head = json.dumps(header, separators=(",", ":")).encode()
    body = b"" if message.row is None else expected.schema_of(message.layers).pack(message.row)
    return PREFIX.pack(MAGIC, len(head), len(body)) + head + body


def decode(frame: bytes, expected: Expected, sender: int, oldest: int = 0) -> Message:
    """The message of a frame.

    Args:
        frame: Any bytes.
        expected: What it must agree with.
        sender: The peer whose identity the other end of the stream has.
        oldest: The first round of which an offer is still of use.

    Raises:
        MessageRefused: It is not as it must be.
    """
    header_bytes, body_bytes = _lengths(frame[: PREFIX.size], expected.schema.body_limit)
    if len(frame) != PREFIX.size + header_bytes + body_bytes:
        raise MessageRefused("format", f"{len(frame)} bytes instead of the announced length")
    header = _header(frame[PREFIX.size : PREFIX.size + header_bytes])
    if header["run"] != expected.run:
        raise MessageRefused("run", why_another(header["run"], expected.run))
    if header["schema"] != expected.schema.digest:
        raise MessageRefused("schema", "the sender's parameters have other names, shapes or dtypes")
    if header["sender"] != sender:
        raise MessageRefused("sender", f"says it is of peer {header['sender']}")
    if not (0 <= header["round"] <= expected.rounds and 1 <= header["at"] <= expected.rounds + 1):
        raise MessageRefused(
            "round", f"round {header['round']}, sent in {header['at']}, of {expected.rounds}"
        )
    if not 1 <= header["degree"] < expected.clients:
        raise MessageRefused("format", f"degree {header['degree']} among {expected.clients} peers")
    if (header["verdict"] is not None) != (header["kind"] == "decision"):
        raise MessageRefused("format", f"a {header['kind']} with verdict {header['verdict']}")
    body = frame[PREFIX.size + header_bytes :]
    if bool(body) != (header["kind"] in WITH_ROW):
        raise MessageRefused("format", f"a {header['kind']} with a body of {len(body)} bytes")
    if header["kind"] == "offer" and header["round"] < oldest:
        said = f"an offer of round {header['round']}, which is over"
        raise MessageRefused("old_round", said, header["round"])
    if bool(header["layers"]) and header["kind"] not in (*WITH_ROW, "vote", "choice"):
        raise MessageRefused("format", f"a {header['kind']} with layers")
    statement = _statement(header["said"], header["round"], body, checked=not expected.compressed)
    row = expected.schema_of(header["layers"]).unpack(body) if body else None
    given: dict[str, Any] = {n: header[n] for n in _TYPES if n not in ("run", "schema", "said")}
    return Message(**given, row=row, said=statement)


async def read_frame(reader: StreamReader, body_limit: int) -> bytes:
    """The next frame of a stream; nothing is read of one that is too long.

    Raises:
        MessageRefused: It is no frame, or too long.
        EOFError: The stream ended before.
    """
    try:
        prefix = await reader.readexactly(PREFIX.size)
        return prefix + await reader.readexactly(sum(_lengths(prefix, body_limit)))
    except IncompleteReadError as error:
        raise EOFError("the stream ended") from error


def _lengths(prefix: bytes, body_limit: int) -> tuple[int, int]:
    if len(prefix) != PREFIX.size or not prefix.startswith(MAGIC):
        raise MessageRefused("format", "does not begin as a message of this version")
    _, header, body = PREFIX.unpack(prefix)
    if header > HEADER_LIMIT or body > body_limit:
        raise MessageRefused(
            "oversized", f"header {header} of {HEADER_LIMIT}, body {body} of {body_limit} bytes"
        )
    return header, body


_TYPES: dict[str, type] = {
    "run": str,
    "schema": str,
    "kind": str,
    "sender": int,
    "round": int,
    "at": int,
    "degree": int,
    "basis": int,
    "starts": int,
    "verdict": str,
    "layers": str,
    "said": list,
}
_NULLABLE = ("verdict", "said")
_SAID = ("row", "before", "signature", "key")
"""What a header has of a statement; its round is the message's."""


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageRefused("format", "the header is not JSON") from None
    if not isinstance(header, dict) or header.keys() != _TYPES.keys():
        raise MessageRefused("format", "the header has not the fields of this version")
    for name, kind in _TYPES.items():
        if type(header[name]) is not kind and not (name in _NULLABLE and header[name] is None):
            raise MessageRefused("format", f"{name} of the header is not {kind.__name__}")
    if header["kind"] not in get_args(Kind) or header["verdict"] not in (None, *get_args(Verdict)):
        raise MessageRefused("format", "a kind or verdict that there is not")
    return header


def _statement(said: list[Any] | None, round_: int, body: bytes, *, checked: bool) -> Statement | None:
    if (said is not None) != bool(body):
        raise MessageRefused("format", "a row without a statement, or a statement without a row")
    if said is None:
        return None
    if len(said) != len(_SAID) or not all(isinstance(word, str) for word in said):
        raise MessageRefused("format", "the statement has not the fields of this version")
    statement = Statement(round_, *said)
    if checked and hashlib.sha256(body).hexdigest() != statement.row:
        raise MessageRefused("hash", "the row is another one than was said")
    return statement
