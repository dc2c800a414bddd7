"""Rows of adapters as bytes, and the checks of what comes back as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedloom.model.bank import Row, bytes_of

_HEADER_PER_TENSOR = 1024
"""More than safetensors needs to say a tensor's name, dtype, shape and place."""


class Unfit(Exception):
    """What came is not what was asked for; the message says why."""


def pack(row: Mapping[str, Tensor]) -> bytes:
    """A row as a safetensors file; nothing for a row of nothing."""
    if not row:
        return b""
    return save({name: t.detach().to("cpu").contiguous() for name, t in row.items()})


def unpack(content: bytes, like: Mapping[str, Tensor], device: torch.device, *, all_of_it: bool) -> Row:
    """Read a row.

    Args:
        content: As `pack` made it.
        like: Tensors of the names, shapes and dtypes that there may be.
        device: Where the result goes.
        all_of_it: Whether every name must be there.

    Raises:
        Unfit: It is too long, no safetensors file, or its names, shapes or dtypes are others.
    """
    if len(content) > bytes_of(like) + _HEADER_PER_TENSOR * (len(like) + 1):
        raise Unfit(f"{len(content)} bytes are more than the adapter's {bytes_of(like)}")
    try:
        row = load(content) if content else {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise Unfit(f"not a safetensors file ({error})") from None
    if strange := sorted(row.keys() - like.keys()):
        raise Unfit(f"unknown parameter {strange[0]}")
    if all_of_it and (missing := sorted(like.keys() - row.keys())):
        raise Unfit(f"parameter {missing[0]} is missing")
    for name, t in row.items():
        if t.shape != like[name].shape or t.dtype != like[name].dtype:
            found, needed = ((*value.shape, value.dtype) for value in (t, like[name]))
            raise Unfit(f"{name} is {found}, not {needed}")
    return {name: t.to(device) for name, t in row.items()}


def digest(row: Mapping[str, Tensor]) -> str:
    """A short name of an adapter's shape: names, shapes and dtypes, not values."""
    listed = [(name, tuple(t.shape), str(t.dtype)) for name, t in sorted(row.items())]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]


def mask_of(names: Sequence[str], chosen: Collection[str]) -> str:
    """Some of the names as one bit for each, in hexadecimal digits."""
    bits = sum(1 << place for place, name in enumerate(names) if name in chosen)
    return f"{bits:0{-(-len(names) // 8) * 2}x}"


def chosen_by(mask: str, names: Sequence[str]) -> set[str]:
    """What `mask_of` wrote down.

    Raises:
        Unfit: It is no such mask.
    """
    try:
        bits = int(mask, 16)
    except ValueError:
        raise Unfit(f"{mask[:40]!r} is no mask of parameters") from None
    if bits < 0 or bits >> len(names):
        raise Unfit(f"a mask of more than {len(names)} parameters")
    return {name for place, name in enumerate(names) if bits >> place & 1}
