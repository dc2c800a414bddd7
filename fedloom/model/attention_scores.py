"""Attention within one bucket: what becomes of the products of queries and keys before and after softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedloom.model.bucket import Bucket
from fedloom.model.hardware import MOST_BLOCKS

# Up to this many keys, plain batched products beat the fused kernel's backward on a CPU; beyond, the
# fused kernel saves the memory of the scores.
_PLAIN_KEYS = 512

PositionBias = Callable[[Tensor, Tensor], Tensor]
"""``(query positions [queries, 1], key positions [keys]) -> [heads, queries, keys]``, added to the scores."""


class Scores(NamedTuple):
    """How an architecture makes scores of products.

    Attributes:
        scale: Factor of the products.
        softcap: ``c`` in ``c * tanh(scores / c)``; None: none.
        sinks: One more score per head, which takes weight and has no value; None: none.
        bias: Of positions; None: none.
    """

    scale: float
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None
    bias: PositionBias | None = None

    @property
    def plain(self) -> bool:
        """Whether the scores are the scaled products and nothing else."""
        return self.softcap is None and self.sinks is None and self.bias is None


def attend(
    bucket: Bucket,
    query: Float[Tensor, "slots dim"],
    key: Float[Tensor, "key_slots dim"],
    value: Float[Tensor, "key_slots value_dim"],
    how: Scores,
    keep: Tensor | None,
) -> Float[Tensor, "batch rows value_dim"]:
    """Attention of one bucket; ``batch``: key heads x sequences, ``rows``: query heads x queries.

    Args:
        bucket: The sequences, and what each may see.
        query: At the bucket's query slots.
        key: At its key slots.
        value: At its key slots.
        how: From products to scores.
        keep: Dropout's factors of the weights, of the shape of the scores; None: no dropout.
    """
    query = query.view(bucket.batch, -1, query.shape[-1])
    key = key.view(bucket.batch, -1, key.shape[-1])
    value = value.view(bucket.batch, -1, value.shape[-1])
    if keep is None and how.plain and (query.is_cuda or key.shape[1] > _PLAIN_KEYS):
        return _fused(bucket, query, key, value, how.scale)
    if how.softcap is None:
        scores = torch.baddbmm(bucket.bias(query), query, key.transpose(1, 2), alpha=how.scale)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)) * (how.scale / how.softcap)
        scores = scores.tanh() * how.softcap + bucket.bias(query)
    if how.bias is not None:
        position = torch.arange(key.shape[1], device=key.device)
        bias = how.bias(position[bucket.shared :, None], position).to(scores.dtype)
        by_head = scores.view(bucket.key_heads, len(bucket.lengths), -1, key.shape[1])
        scores = (by_head + bias.view(bucket.key_heads, 1, -1, key.shape[1])).view(scores.shape)
    if how.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = _per_row(bucket, how.sinks).to(scores.dtype)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return torch.bmm(weights if keep is None else weights * keep, value)


def _per_row(bucket: Bucket, per_head: Float[Tensor, " heads"]) -> Float[Tensor, "batch rows 1"]:
    """A number of each query head, for every row of the scores."""
    by_group = per_head.view(bucket.key_heads, 1, bucket.group, 1)
    return by_group.expand(-1, len(bucket.lengths), -1, bucket.longest).reshape(bucket.batch, -1, 1)


def _fused(bucket: Bucket, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The same through torch's fused kernels, which never hold all scores at once."""
    batch, group = bucket.batch, bucket.group
    query = query.view(batch, group, -1, query.shape[-1])
    key = key[:, None].expand(-1, group, -1, -1)
    value = value[:, None].expand(-1, group, -1, -1)
    causal = bucket.causal_only and query.shape[2] > 1
    mask = None if bucket.causal_only or bucket.visible is None else bucket.visible_by_batch()
    outs = []
    for first in range(0, batch, MOST_BLOCKS):
        some = slice(first, first + MOST_BLOCKS)
        seen = mask if mask is None or mask.shape[0] == 1 else mask[some]
        q, k, v = query[some], key[some], value[some]
        outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=scale))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.reshape(batch, -1, value.shape[-1])
