"""Attention over packed tokens, registered with transformers as ``fedloom_packed``.

Everything else in a transformer sees tokens one by one; only attention sees sequences. Here the
tokens of sequences of similar length are gathered into a bucket, attended, and scattered back. What
all sequences of a client share (see `fedloom.model.packing`) is gathered before each one's own keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from fedloom.model.bucket import Bucket
from fedloom.model.buckets import Buckets, plan_buckets
from fedloom.model.dropout import Draws
from fedloom.model.packing import Pack

NAME = "fedloom_packed"

# Up to this many keys, plain batched products beat the fused kernel's backward on a CPU; beyond, the
# fused kernel saves the memory of the scores.
_PLAIN_KEYS = 512


@dataclass
class PackedPass:
    """What attention needs to know of a packed pass; travels through the model as the keyword ``packed``.

    Attributes:
        pack: The pass.
        causal: A token sees only what stands before it.
        draws: Dropout masks; None turns dropout off.
    """

    pack: Pack
    causal: bool
    draws: Draws | None = None
    _plans: dict[tuple[int | None, int, int], Buckets] = field(default_factory=dict)

    def buckets(self, window: int | None, heads: int, key_heads: int) -> Buckets:
        """The pass's buckets, worked out once for all layers that are alike."""
        key = (window, heads, key_heads)
        if key not in self._plans:
            self._plans[key] = plan_buckets(self.pack, self.causal, window, heads, key_heads)
        return self._plans[key]


class _ToBuckets(torch.autograd.Function):
    """``[tokens * heads, dim]`` -> each bucket's slots; backward gathers what belongs to each token."""

    @staticmethod
    def forward(ctx, x, slots, home, sizes, shares):
        ctx.home, ctx.shares, ctx.rows = home, shares, slots.shape[0]
        return x.index_select(0, slots).split(sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        every = grads[0] if len(grads) == 1 else torch.cat(grads)
        grad = every.index_select(0, ctx.home)
        for share in ctx.shares:
            share.add_gradients(grad, grads[share.bucket])
        return grad, None, None, None, None


class _FromBuckets(torch.autograd.Function):
    """Each bucket's slots -> ``[tokens * heads, dim]``; pads get no gradient."""

    @staticmethod
    def forward(ctx, slots, home, pads, sizes, *buckets):
        ctx.slots, ctx.pads, ctx.sizes = slots, pads, sizes
        every = buckets[0] if len(buckets) == 1 else torch.cat(buckets)
        return every.index_select(0, home)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        every = grad.index_select(0, ctx.slots)
        if ctx.pads.numel():
            every.index_fill_(0, ctx.pads, 0.0)
        return None, None, None, None, *every.split(ctx.sizes)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 key_heads tokens dim"],
    value: Float[Tensor, "1 key_heads tokens dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedPass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """The attention function that transformers calls; see `transformers.AttentionInterface`.

    Raises:
        ValueError: when the architecture wants something of its attention that packing does not give.
    """
    if packed is None or softcap is not None or kwargs.get("position_bias") is not None:
        raise ValueError("this architecture's attention cannot be packed: it changes the scores")
    heads, tokens, dim = query.shape[1:]
    buckets = packed.buckets(sliding_window, heads, key.shape[1])
    queries = _rows(query, buckets.query_slots, buckets.query_home, buckets.query_sizes, ())
    keys = _rows(key, buckets.key_slots, buckets.key_home, buckets.key_sizes, buckets.shares)
    values = _rows(value, buckets.key_slots, buckets.key_home, buckets.key_sizes, buckets.shares)
    scale = dim**-0.5 if scaling is None else scaling
    keeps = _attention_dropout(packed, buckets, dropout, query.dtype)
    outputs = [
        _attend(bucket, q, k, v, scale, keep).reshape(-1, dim)
        for bucket, q, k, v, keep in zip(buckets.buckets, queries, keys, values, keeps, strict=True)
    ]
    out = _FromBuckets.apply(
        buckets.query_slots, buckets.query_home, buckets.query_pads, buckets.query_sizes, *outputs
    )
    return out.view(1, tokens, heads, dim), None


def _rows(
    x: Tensor, slots: Tensor, home: Tensor, sizes: list[int], shares: Sequence[Any]
) -> tuple[Tensor, ...]:
    # One copy at most: the projections leave [tokens, heads, dim] in memory. x[0] would copy its gradient.
    rows = x.squeeze(0).transpose(0, 1).reshape(-1, x.shape[-1])
    return _ToBuckets.apply(rows, slots, home, sizes, shares)


def _attend(
    bucket: Bucket, query: Tensor, key: Tensor, value: Tensor, scale: float, keep: Tensor | None
) -> Float[Tensor, "batch rows dim"]:
    """Attention of one bucket; ``batch``: key heads x sequences, ``rows``: query heads x queries."""
    dim = query.shape[-1]
    key, value = key.view(bucket.batch, -1, dim), value.view(bucket.batch, -1, dim)
    if keep is None and (query.is_cuda or key.shape[1] > _PLAIN_KEYS):
        return _fused(bucket, query, key, value, scale)
    query = query.view(bucket.batch, -1, dim)
    scores = torch.baddbmm(bucket.bias(query), query, key.transpose(1, 2), alpha=scale)
    probabilities = scores.softmax(-1)
    if keep is not None:
        probabilities = probabilities * keep
    return torch.bmm(probabilities, value)


def _fused(bucket: Bucket, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The same through torch's fused kernels, which never hold all scores at once."""
    batch, group, dim = bucket.batch, bucket.group, query.shape[-1]
    query = query.view(batch, group, -1, dim)
    key = key[:, None].expand(batch, group, -1, dim)
    value = value[:, None].expand(batch, group, -1, dim)
    causal = bucket.causal_only and query.shape[2] > 1
    mask = None if bucket.causal_only or bucket.visible is None else bucket.visible_by_batch()
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return out.reshape(batch, -1, dim)


def _attention_dropout(
    packed: PackedPass, buckets: Buckets, probability: float, dtype: torch.dtype
) -> list[Tensor | None]:
    if packed.draws is None or probability == 0.0:
        return [None] * len(buckets.buckets)
    pairs = packed.draws.flat(buckets.run_pairs, probability, dtype)
    return [
        pairs.index_select(0, bucket.pairs.to(pairs.device)).view(bucket.score_shape)
        for bucket in buckets.buckets
    ]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Packed attention makes its own masks."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
