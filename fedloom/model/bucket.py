"""Sequences of similar length, attended to together: where their rows stand, and what each may see.

Rows are ``token * heads + head`` of ``[tokens * heads, dim]``. A bucket's query slots are ordered
``[key head, sequence, query head of the group, position]``, its key slots ``[key head, sequence,
position]``, so that both are batches of plain matrices without another copy, grouped heads included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedloom.model.blocks import segment_sums


class Share(NamedTuple):
    """A shared prefix as some sequences of one bucket see it: their gradients of it add up.

    ``rows`` are the prefix's rows in ``[tokens * key heads, dim]``; ``view`` reshapes the bucket's
    gradient to ``[key heads, sequences, keys, dim]``; ``first`` to ``last`` are the sequences.
    """

    bucket: int
    rows: slice
    view: tuple[int, int, int]
    first: int
    last: int
    shared: int

    def add_gradients(self, grad: Tensor, of_bucket: Tensor) -> None:
        """Add the sequences' gradients of the prefix to the prefix's own, in place."""
        dim = grad.shape[-1]
        seen = of_bucket.view(*self.view, dim)[:, self.first : self.last, : self.shared]
        of_rows = grad[self.rows].view(self.shared, -1, dim)
        of_rows += seen.sum(1).transpose(0, 1)


class Shares(NamedTuple):
    """All shared prefixes of a bucket at once, each as its own sequences see it.

    ``rows`` are those of the prefixes, ``[prefixes * key heads * shared]``; ``firsts`` the first sequence of
    each; ``view`` is as in `Share`.
    """

    bucket: int
    rows: Tensor
    view: tuple[int, int, int]
    firsts: Tensor
    shared: int

    def add_gradients(self, grad: Tensor, of_bucket: Tensor) -> None:
        """Add the sequences' gradients of each prefix to the prefix's own, in place."""
        seen = of_bucket.view(*self.view, -1)[:, :, : self.shared].transpose(0, 1)
        sums = segment_sums(seen.flatten(1), self.firsts)
        grad.index_add_(0, self.rows, sums.view(-1, grad.shape[-1]))  # no row is twice among them


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length.

    Attributes:
        starts, lengths: Of each sequence, without what it shares; all on the CPU.
        prefix_starts: Where what each shares starts.
        shared: Shared tokens before each sequence.
        visible: True where a query may look, ``[1 or sequences, longest, shared + longest]``; None:
            everywhere.
        causal_only: `visible` is plain causality over equal numbers of queries and keys.
        heads, key_heads: Query heads, and the key and value heads that they share.
        first_pairs: Where each sequence's query-key-head triples start among all of the pass.
    """

    starts: Int[Tensor, " sequences"]
    lengths: Int[Tensor, " sequences"]
    prefix_starts: Int[Tensor, " sequences"]
    shared: int
    visible: Bool[Tensor, "masks longest keys"] | None
    causal_only: bool
    heads: int
    key_heads: int
    first_pairs: Int[Tensor, " sequences"]

    @property
    def longest(self) -> int:
        """Queries per sequence, pads included."""
        return int(self.lengths.max())

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.key_heads

    @property
    def batch(self) -> int:
        """Matrices in a batched product."""
        return self.key_heads * len(self.lengths)

    @property
    def score_shape(self) -> tuple[int, int, int]:
        """Shape of the attention scores."""
        return self.batch, self.group * self.longest, self.shared + self.longest

    def query_rows(self) -> tuple[Tensor, Tensor]:
        """The row at each query slot, and which slots are no pads."""
        position = torch.arange(self.longest)
        real = position < self.lengths[:, None]
        token = self.starts[:, None] + position * real
        head = torch.arange(self.heads).view(self.key_heads, 1, self.group, 1)
        rows = token[:, None, :] * self.heads + head
        return rows.flatten(), real[:, None, :].expand_as(rows).flatten()

    def key_rows(self) -> tuple[Tensor, Tensor]:
        """The row at each key slot, and which slots are a sequence's own tokens."""
        position = torch.arange(self.longest)
        real = position < self.lengths[:, None]
        own = self.starts[:, None] + position * real
        before = self.prefix_starts[:, None] + torch.arange(self.shared)
        token = torch.cat([before, own], 1)
        own_slot = torch.cat([torch.zeros_like(before, dtype=torch.bool), real], 1)
        rows = token * self.key_heads + torch.arange(self.key_heads)[:, None, None]
        return rows.flatten(), own_slot.expand_as(rows).flatten()

    def bias(self, like: Tensor) -> Tensor:
        """What is added to scores of the dtype and device of ``like``.

        0, or the least number where a query may not look; broadcasts to `score_shape`.
        """
        if like.dtype not in self._biases:
            self._biases[like.dtype] = self._bias(like)
        return self._biases[like.dtype]

    @cached_property
    def _biases(self) -> dict[torch.dtype, Tensor]:
        return {}

    def _bias(self, like: Tensor) -> Tensor:
        if self.visible is None:
            return like.new_zeros(()).expand(1, 1, 1)
        bias = like.new_zeros(self.visible.shape)
        bias.masked_fill_(~self.visible, torch.finfo(like.dtype).min)
        bias = bias[:, None].expand(-1, self.group, -1, -1).flatten(1, 2)
        return bias if bias.shape[0] == 1 else bias.repeat(self.key_heads, 1, 1)

    def visible_by_batch(self) -> Tensor:
        """`visible` for the fused kernels, ``[1 or batch, 1, longest, keys]``."""
        assert self.visible is not None
        mask = self.visible if self.visible.shape[0] == 1 else self.visible.repeat(self.key_heads, 1, 1)
        return mask[:, None]

    @cached_property
    def pairs(self) -> Int[Tensor, " scores"]:
        """For each score, its place among all query-key-head triples of the pass (pads: the first)."""
        query = torch.arange(self.longest)[:, None]
        key = torch.arange(self.shared + self.longest)
        length = self.lengths[:, None, None]
        real = (query < length) & (key < self.shared + length)
        within = (query * (self.shared + length) + key) * real
        head = torch.arange(self.heads).view(self.key_heads, 1, self.group, 1, 1)
        pairs_per_head = (length * (self.shared + length))[:, None]
        place = (
            self.first_pairs[:, None, None, None] + head * pairs_per_head * real[:, None] + within[:, None]
        )
        return place.flatten()
