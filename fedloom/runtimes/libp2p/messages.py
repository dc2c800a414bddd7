"""What peers send each other: a fixed header as JSON, and a row of the bank as safetensors; never pickle.

A frame on a stream is

    magic and version (4 bytes) | length of header (4) | length of body (8) | header | body

The body is empty, or one flat tensor per dtype: names and shapes are known at both ends, so a digest of them in
the header takes the place of some hundred bytes per parameter. Whatever is not exactly as it must be raises
`MessageRefused`, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from asyncio import IncompleteReadError, StreamReader
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load, save

from fedloom.model.bank import Row

MAGIC = b"FLP\x01"
PREFIX = struct.Struct(">4sIQ")
HEADER_LIMIT = 1024
_SAFETENSORS_HEADER_LIMIT = 1024

Kind = Literal["hello", "offer", "ready", "passed", "question", "decision", "thanks"]
Verdict = Literal["commit", "out", "open"]
WITH_ROW = frozenset({"offer", "ready"})


class MessageRefused(Exception):
    """A message that is not as it must be.

    Attributes:
        kind: What is wrong with it, in a word, to count by.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind


@dataclass(frozen=True)
class Schema:
    """What a row must be.

    Attributes:
        entries: Name, shape and dtype of every tensor, by name.
    """

    entries: tuple[tuple[str, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, row: Row) -> Schema:
        """The schema of a row."""
        return cls(tuple((name, tuple(t.shape), _dtype_name(t)) for name, t in sorted(row.items())))

    @cached_property
    def digest(self) -> str:
        """Of all names, shapes and dtypes."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()[:16]

    @cached_property
    def flat_sizes(self) -> dict[str, int]:
        """Numbers of each dtype in a row."""
        sizes: dict[str, int] = {}
        for _, shape, dtype in self.entries:
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
        return sizes

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row's numbers."""
        return sum(count * getattr(torch, dtype).itemsize for dtype, count in self.flat_sizes.items())

    @property
    def body_limit(self) -> int:
        """Bytes that the body of a message may have."""
        return 8 + _SAFETENSORS_HEADER_LIMIT + self.row_bytes

    def pack(self, row: Row) -> bytes:
        """A row as bytes."""
        flat = {
            dtype: torch.cat(
                [row[name].detach().cpu().flatten() for name, _, own in self.entries if own == dtype]
            )
            for dtype in self.flat_sizes
        }
        return save(flat)

    def unpack(self, body: bytes) -> Row:
        """The row that `pack` was given.

        Raises:
            MessageRefused: The bytes are not a row of this schema, or a number is not finite.
        """
        if len(body) > self.body_limit:
            raise MessageRefused("oversized", f"{len(body)} bytes where a row has {self.row_bytes}")
        header = int.from_bytes(body[:8], "little")
        if len(body) < 8 or header > min(len(body) - 8, _SAFETENSORS_HEADER_LIMIT):
            raise MessageRefused("format", f"no safetensors header of {header} bytes in {len(body)}")
        try:
            flat = load(body)
        except Exception as error:  # the parser's own errors are many, and none of them is ours
            raise MessageRefused("format", f"not safetensors ({type(error).__name__})") from None
        if flat.keys() != self.flat_sizes.keys():
            raise MessageRefused("names", f"tensors {sorted(flat)[:3]} instead of {sorted(self.flat_sizes)}")
        for dtype, t in flat.items():
            if _dtype_name(t) != dtype:
                raise MessageRefused("dtype", f"{_dtype_name(t)} instead of {dtype}")
            if tuple(t.shape) != (self.flat_sizes[dtype],):
                raise MessageRefused("shape", f"{tuple(t.shape)} instead of ({self.flat_sizes[dtype]},)")
            if not bool(t.isfinite().all()):
                raise MessageRefused("not_finite", "a number of the row is not finite")
        row: Row = {}
        taken = dict.fromkeys(flat, 0)
        for name, shape, dtype in self.entries:
            end = taken[dtype] + math.prod(shape)
            row[name] = flat[dtype][taken[dtype] : end].view(shape)
            taken[dtype] = end
        return row


def _dtype_name(t: torch.Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Message:
    """One message; peers count from 1.

    Attributes:
        kind: ``hello`` says where the sender is. ``offer`` has the row of the lower number of an edge, ``ready``
            that of the higher one, which from then on no longer decides alone; ``passed`` refuses an offer.
            ``decision`` ends a round of an edge, also as the answer to ``question``; ``thanks`` ends an offer.
        sender: Whose message it is.
        round: What it is about; from 1.
        at: The round that the sender is in; one more than there are where it has done all.
        degree: How many neighbours the sender has in the configured graph.
        verdict: Of a decision: ``open`` is not decided yet.
        row: Of an offer or a ready: the sender's trained parameters.
    """

    kind: Kind
    sender: int
    round: int
    at: int
    degree: int
    verdict: Verdict | None = None
    row: Row | None = None


@dataclass(frozen=True)
class Expected:
    """What all messages of a run have in common.

    Attributes:
        run: Digest of what all peers must agree on.
        schema: Of rows.
        rounds: How many there are.
        clients: How many peers there are.
    """

    run: str
    schema: Schema
    rounds: int
    clients: int


def encode(message: Message, expected: Expected) -> bytes:
    """A message as a frame."""
    header = {
        "run": expected.run,
        "schema": expected.schema.digest,
        **{name: value for name, value in vars(message).items() if name != "row"},
    }
    head = json.dumps(header, separators=(",", ":")).encode()
    body = b"" if message.row is None else expected.schema.pack(message.row)
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
        raise MessageRefused("run", "it belongs to another run; compare the options of both peers")
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
        raise MessageRefused("old_round", f"an offer of round {header['round']}, which is over")
    row = expected.schema.unpack(body) if body else None
    return Message(**{name: header[name] for name in _TYPES if name not in ("run", "schema")}, row=row)


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
    "verdict": str,
}


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageRefused("format", "the header is not JSON") from None
    if not isinstance(header, dict) or header.keys() != _TYPES.keys():
        raise MessageRefused("format", "the header has not the fields of this version")
    for name, kind in _TYPES.items():
        if type(header[name]) is not kind and not (name == "verdict" and header[name] is None):
            raise MessageRefused("format", f"{name} of the header is not {kind.__name__}")
    if header["kind"] not in get_args(Kind) or header["verdict"] not in (None, *get_args(Verdict)):
        raise MessageRefused("format", "a kind or verdict that there is not")
    return header
