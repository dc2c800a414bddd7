"""What a row of the bank looks like on the wire: one flat tensor per dtype, as safetensors.

Names and shapes are known at both ends, so a digest of them, in a message's header, takes the place of some
hundred bytes per parameter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors.torch import load, save

from fedloom.model.bank import Row, usable

_SAFETENSORS_HEADER_LIMIT = 1024


class MessageRefused(Exception):
    """A message that is not as it must be.

    Attributes:
        kind: What is wrong with it, in a word, to count by.
        round: What it is about, where that is all that is wrong; else 0.
    """

    def __init__(self, kind: str, why: str, round_: int = 0) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind, self.round = kind, round_


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

    def without(self, names: Collection[str]) -> Schema:
        """The schema of rows that lack some tensors."""
        return Schema(tuple(entry for entry in self.entries if entry[0] not in names))

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
        parts: dict[str, list[torch.Tensor]] = {dtype: [] for dtype in self.flat_sizes}
        for name, _, dtype in self.entries:
            parts[dtype].append(row[name].detach().cpu().flatten())
        return save({dtype: torch.cat(tensors) for dtype, tensors in parts.items()})

    def unpack(self, body: bytes) -> Row:
        """The row that `pack` was given.

        Raises:
            MessageRefused: The bytes are not a row of this schema, or a number is not finite, or so large
                that it would ruin whoever averages with it.
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
            if t.is_floating_point() and not usable({dtype: t}):
                raise MessageRefused("not_finite", "a number of the row is not finite, or too large")
        row: Row = {}
        taken = dict.fromkeys(flat, 0)
        for name, shape, dtype in self.entries:
            end = taken[dtype] + math.prod(shape)
            row[name] = flat[dtype][taken[dtype] : end].view(shape)
            taken[dtype] = end
        return row


def _dtype_name(t: torch.Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
