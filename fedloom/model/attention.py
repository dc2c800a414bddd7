"""Attention over packed tokens, registered with transformers as ``fedloom_packed``.

Everything else in a transformer sees tokens one by one; only attention sees sequences. Here the
tokens of sequences of similar length are gathered into a bucket, attended, and scattered back. What
all sequences of a client share (see `fedloom.model.packing`) is gathered before each one's own keys.

What a token may see is the architecture's own rule: transformers gives it to the function that makes its
masks (`fedloom.model.mask_rules`), and the layers carry it to attention, where another implementation would
have a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from fedloom.model import one_call
from fedloom.model.attention_scores import PositionBias, Scores, attend
from fedloom.model.buckets import Buckets, Rule, plan_buckets
from fedloom.model.dropout import Draws
from fedloom.model.mask_rules import MaskRule, mask_rule, window_rule
from fedloom.model.one_call import Ends, plan_ends
from fedloom.model.pack import Pack

NAME = "fedloom_packed"

# Arguments of attention that are known to change nothing here, or of which the mask already tells. Any other
# one with a value means that the architecture wants something that is not done here.
_HARMLESS = frozenset(
    {
        "is_causal",
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "position_embeddings",
        "num_items_in_batch",
        "logits_to_keep",
        "deterministic",
    }
)


@dataclass
class PackedPass:
    """What attention needs to know of a packed pass.

    Attributes:
        pack: The pass.
        causal: A token sees only what stands before it.
        draws: Dropout masks; None turns dropout off.
    """

    pack: Pack
    causal: bool
    draws: Draws | None = None
    _plans: dict[Any, tuple[Rule | None, Buckets]] = field(default_factory=dict)
    _ends: dict[Any, tuple[Rule | None, Ends | None]] = field(default_factory=dict)

    def buckets(self, rule: Rule | None, window: int | None, heads: int, key_heads: int) -> Buckets:
        """The pass's buckets, worked out once for all layers that are alike."""
        key = (window if rule is None else id(rule), heads, key_heads)
        if key not in self._plans:
            rule = rule or (None if window is None else window_rule(window))
            # The rule is kept with its plan: nothing else may get its id while the pass lasts.
            self._plans[key] = rule, plan_buckets(self.pack, self.causal, rule, heads, key_heads)
        return self._plans[key][1]

    def ends(self, rule: Rule | None, window: int | None) -> Ends | None:
        """The pass's sequences for one call, worked out once; None where it has no such form."""
        key = window if rule is None else id(rule)
        if key not in self._ends:
            rule = rule or (None if window is None else window_rule(window))
            self._ends[key] = rule, plan_ends(self.pack, self.causal, rule)
        return self._ends[key][1]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let attention see this pass for the length of the block."""
        token = _RUNNING.set(self)
        try:
            yield
        finally:
            _RUNNING.reset(token)


_RUNNING: ContextVar[PackedPass | None] = ContextVar("packed_pass", default=None)


def running_pass() -> PackedPass | None:
    """The packed pass that is going through the model; None outside one."""
    return _RUNNING.get()


class _ToBuckets(torch.autograd.Function):
    """``[tokens * heads, dim]`` -> each bucket's slots; backward gathers what belongs to each token."""

    @staticmethod
    def forward(ctx, x, slots, home, sizes, shares):
        ctx.home, ctx.shares, ctx.rows = home, shares, slots.shape[0]
        return x.index_select(0, slots).split(sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
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
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        every = grad.index_select(0, ctx.slots)
        if ctx.pads.numel():
            every.index_fill_(0, ctx.pads, 0.0)
        return None, None, None, None, *every.split(ctx.sizes)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 key_heads tokens dim"],
    value: Float[Tensor, "1 key_heads tokens value_dim"],
    attention_mask: MaskRule | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    bias: PositionBias | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """The attention function that transformers calls; see `transformers.AttentionInterface`.

    Args:
        module: The layer that calls.
        query: Queries of all tokens of the pass.
        key: Their keys, of as many or fewer heads.
        value: Their values.
        attention_mask: The rule that `mask_rule` made; None: everything, or what ``sliding_window`` leaves.
        scaling: Of the scores; None: 1 / sqrt(dim).
        dropout: Of the attention weights.
        sliding_window: Used where there is no rule.
        softcap: Scores are ``softcap * tanh(scores / softcap)`` (Gemma 2).
        s_aux: One more score per head that takes weight and gives nothing: gpt-oss's sinks.
        bias: Of positions, added to the scores; see `fedloom.model.own_attention`.
        kwargs: What else the architecture says.

    Raises:
        ValueError: when the architecture wants something of its attention that packing does not give.
    """
    packed = running_pass()
    asked = {name for name, given in kwargs.items() if given is not None and given is not False}
    unknown = sorted(asked - _HARMLESS)
    if packed is None or unknown or isinstance(attention_mask, Tensor):
        what = ", ".join(unknown) or "a mask of its own"
        raise ValueError(f"this architecture's attention cannot be packed: it uses {what}")
    heads, tokens, dim = query.shape[1:]
    scores = Scores(dim**-0.5 if scaling is None else scaling, softcap, s_aux, bias)
    ends = None
    if scores.plain and (packed.draws is None or dropout == 0.0) and one_call.knows(query, value):
        ends = packed.ends(attention_mask, sliding_window)
    if ends is not None:
        q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
        return one_call.attend(q, k, v, ends, scores.scale)[None], None
    buckets = packed.buckets(attention_mask, sliding_window, heads, key.shape[1])
    queries = _rows(query, buckets.query_slots, buckets.query_home, buckets.query_sizes, ())
    keys = _rows(key, buckets.key_slots, buckets.key_home, buckets.key_sizes, buckets.shares)
    values = _rows(value, buckets.key_slots, buckets.key_home, buckets.key_sizes, buckets.shares)
    keeps = _attention_dropout(packed, buckets, dropout, query.dtype)
    outputs = [
        attend(bucket, q, k, v, scores, keep).reshape(-1, value.shape[-1])
        for bucket, q, k, v, keep in zip(buckets.buckets, queries, keys, values, keeps, strict=True)
    ]
    out = _FromBuckets.apply(
        buckets.query_slots, buckets.query_home, buckets.query_pads, buckets.query_sizes, *outputs
    )
    return out.view(1, tokens, heads, -1), None


def _rows(
    x: Tensor, slots: Tensor, home: Tensor, sizes: list[int], shares: Sequence[Any]
) -> tuple[Tensor, ...]:
    # One copy at most: the projections leave [tokens, heads, dim] in memory. x[0] would copy its gradient.
    rows = x.squeeze(0).transpose(0, 1).reshape(-1, x.shape[-1])
    return _ToBuckets.apply(rows, slots, home, sizes, shares)


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


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, mask_rule)
