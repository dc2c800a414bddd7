"""What a change looks like on the wire; every file beside this one is one codec.

A codec is a pair of functions; what it makes of a row are tensors again, whose bytes are what is counted and
sent:

    payload = codec.encode(row, seed)       # {name: tensor}, smaller
    row = codec.decode(payload, like)       # as near to the row as the codec can be

What a lossy codec loses in one round is added to what the same sender sends in the next (`feedback`), unless
the codec says otherwise (`Feedback`); on a graph both ends' estimates see to that (`federation.choco`). A
payload has few tensors, however many the row has: on the wire each costs a name and a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedloom.errors import UserError
from fedloom.model.bank import Row


class Feedback(NamedTuple):
    """What a sender makes of what it remembers, e, tensor by tensor; e begins at 0.

    Attributes:
        wanted: ``(change, e) -> what is encoded``.
        kept: ``(change, e, what the receiver decodes) -> e``.
    """

    wanted: Callable[[Tensor, Tensor], Tensor]
    kept: Callable[[Tensor, Tensor, Tensor], Tensor]


ERROR_FEEDBACK = Feedback(lambda t, e: t + e, lambda t, e, arrived: t + e - arrived)
"""What was lost is sent later (Stich et al., 2018, arXiv:1809.07599)."""


class Codec(NamedTuple):
    """See the module.

    Attributes:
        encode: ``(row, seed) -> payload``; random choices depend on the seed alone, and the payload's names,
            shapes and dtypes on those of the row: others are refused where they come over a network.
        decode: ``(payload, like) -> row``, with the names, shapes, dtypes and device of ``like``. A payload
            that is not one of this codec and of such a row raises ``ValueError`` or ``KeyError``.
        lossy: Whether the row that comes out may be another than that which went in.
        memory: What becomes of what a lossy one loses; None: nothing, for one that is right on average.
    """

    encode: Callable[[Row, int], Row]
    decode: Callable[[Row, Row], Row]
    lossy: bool
    memory: Feedback | None = ERROR_FEEDBACK

    @property
    def remembers(self) -> bool:
        """Whether a sender keeps something for it from round to round."""
        return self.lossy and self.memory is not None


def feedback(codec: Codec, row: Row, residual: Row, seed: int) -> tuple[Row, Row]:
    """Encode a row together with what was lost before, as the codec's memory has it; by default

        p ← encode(row + e);   e ← row + e − decode(p)

    Args:
        codec: What encodes.
        row: What is to be sent.
        residual: e of the rounds before; a name that is not there has none.
        seed: What random choices depend on.

    Returns:
        The payload, and the new e; a codec without memory has none.
    """
    if codec.memory is None or not codec.lossy:
        return codec.encode(row, seed), {}
    e = {name: residual[name] if name in residual else torch.zeros_like(t) for name, t in row.items()}
    wanted = {name: codec.memory.wanted(t, e[name]) for name, t in row.items()}
    payload = codec.encode(wanted, seed)
    arrives = codec.decode(payload, wanted)
    return payload, residual | {n: codec.memory.kept(t, e[n], arrives[n]) for n, t in row.items()}


def flattened(row: Row) -> Tensor:
    """All numbers of a row, in the order of their names. ``[numbers]``"""
    return torch.cat([row[name].flatten() for name in sorted(row)])


def unflattened(flat: Tensor, like: Row) -> Row:
    """The row that `flattened` was given, with names, shapes, dtypes and device of another."""
    pieces = flat.split([like[name].numel() for name in sorted(like)])
    return {
        name: t.view(like[name].shape).to(like[name]) for name, t in zip(sorted(like), pieces, strict=True)
    }


def check_share(name: str, share: float) -> None:
    """Make sure that a codec sends some of the numbers.

    Raises:
        UserError: It is no share.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"compress: {name}:{share:g} sends nothing that can be; the share must be above 0 and at most 1"
        )


def scattered(places: Tensor, values: Tensor, like: Row) -> Row:
    """A row of some numbers at their places in `flattened`, and zeros."""
    any_of_it = next(iter(like.values()))
    flat = torch.zeros(numbers_in(like), dtype=any_of_it.dtype, device=any_of_it.device)
    flat[places.to(flat.device)] = values.to(flat.device)
    return unflattened(flat, like)


def numbers_in(row: Row) -> int:
    """How many numbers a row has."""
    return sum(t.numel() for t in row.values())


def received(payload: Row, name: str, shape: tuple[int, ...], dtype: torch.dtype, like: Row) -> Tensor:
    """A tensor of a payload, on the device of ``like``.

    Raises:
        ValueError: It has another shape or dtype.
        KeyError: It is not there.
    """
    t = payload[name]
    if tuple(t.shape) != shape or t.dtype != dtype:
        raise ValueError(f"{name} is {tuple(t.shape)}, {t.dtype}, and should be {shape}, {dtype}")
    return t.to(next(iter(like.values())).device)
