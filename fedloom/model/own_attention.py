"""Attention layers that compute their scores themselves, for packed passes.

Most architectures hand queries, keys and values to the attention function of their configuration, which
`fedloom.model.attention` replaces. Those here do not; so the layer's own forward is replaced while a packed
pass runs. What they add to the scores depends on positions alone: ALiBi (Press et al., 2022,
arXiv:2108.12409) in BLOOM, MPT and some Falcons, learnt relative positions in MPNet. A trial
(`fedloom.model.trial`) holds all of it to the architecture's own code before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from fedloom.model.attention import packed_attention
from fedloom.model.attention_scores import PositionBias

# Copies of BERT's self-attention from before transformers had attention functions.
_LIKE_BERT = ("MegatronBert", "RemBert", "LayoutLM", "BigBird", "SqueezeBert")


class Replacement(NamedTuple):
    """A method of a module, and what stands for it during packed passes."""

    module: nn.Module
    name: str
    function: Callable[..., Any]


def find_own_attention(model: nn.Module) -> list[Replacement]:
    """The attention layers of ``model`` that need another forward in packed passes."""
    known: dict[str, tuple[str, Callable[..., Any]]] = {
        "BloomAttention": ("forward", _bloom),
        "FalconAttention": ("forward", _falcon),
        "MptAttention": ("forward", _mpt),
        "MPNetSelfAttention": ("forward", _mpnet),
        "MPNetEncoder": ("compute_position_bias", _mpnet_bias),
        **{f"{name}SelfAttention": ("forward", _bert) for name in _LIKE_BERT},
    }
    found = []
    for module in model.modules():
        if type(module).__name__ in known:
            name, function = known[type(module).__name__]
            found.append(Replacement(module, name, partial(function, module)))
    return found


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Let the replacements stand for the length of the block."""
    for module, name, function in replacements:
        module.__dict__[name] = function
    try:
        yield
    finally:
        for module, name, _ in replacements:
            del module.__dict__[name]


def _attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout: float, **how: Any) -> Tensor:
    """``[1, heads, tokens, dim]`` each -> ``[1, tokens, heads * dim]``."""
    return packed_attention(module, q, k, v, mask, dropout=dropout if module.training else 0.0, **how)[
        0
    ].flatten(2)


def _heads(x: Tensor, dim: int) -> Float[Tensor, "1 heads tokens dim"]:
    return x.view(*x.shape[:2], -1, dim).transpose(1, 2)


def _alibi(bias: Float[Tensor, "heads 1 keys"], scale: float = 1.0) -> PositionBias:
    """From the bias of a row of keys to that of any keys: what is added grows with the key's position."""
    slopes = scale * (bias[:, :, 1:2] - bias[:, :, :1])
    return lambda query, key: (slopes * key).expand(-1, query.shape[0], -1)


def _bloom(
    self: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    q, k, v = self._reshape(self.query_key_value(hidden_states))
    how = {"scaling": self.inv_norm_factor, "bias": _alibi(alibi, self.beta)}
    out = self.dense(_attend(self, q, k, v, attention_mask, self.attention_dropout.p, **how))
    return residual + nn.functional.dropout(out, self.hidden_dropout, self.training), None


def _falcon(
    self: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Any,
    *args: Any,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    q, k, v = (x.transpose(1, 2) for x in self._split_heads(self.query_key_value(hidden_states)))
    if alibi is None:
        rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
        q, k = rotate(q, k, *position_embeddings)  # type: ignore[misc]
        return self.dense(_attend(self, q, k, v, attention_mask, 0.0)), None
    bias = _alibi(alibi.reshape(-1, 1, alibi.shape[-1]), self.inv_norm_factor)
    return self.dense(_attend(self, q, k, v, attention_mask, self.attention_dropout.p, bias=bias)), None


def _mpt(
    self: Any,
    hidden_states: Tensor,
    position_bias: Tensor,
    *args: Any,
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    mixed = self.Wqkv(hidden_states)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    q, k, v = (_heads(x, self.head_dim) for x in mixed.chunk(3, dim=2))
    how = {"scaling": self.softmax_scale, "bias": _alibi(position_bias)}
    return self.out_proj(_attend(self, q, k, v, attention_mask, float(self.attn_dropout_p), **how)), None


def _mpnet(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    position_bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor]:
    q, k, v = (
        _heads(project(hidden_states), self.attention_head_size) for project in (self.q, self.k, self.v)
    )
    return (self.o(_attend(self, q, k, v, attention_mask, self.dropout.p, bias=position_bias)),)


def _mpnet_bias(
    self: Any, x: Tensor, position_ids: Tensor | None = None, num_buckets: int = 32
) -> PositionBias:
    """Of any two positions, in place of those of all pairs of the pass's tokens."""

    def bias(query: Tensor, key: Tensor) -> Tensor:
        places = self.relative_position_bucket(key - query, num_buckets=num_buckets)
        return self.relative_attention_bias(places).permute(2, 0, 1)

    return bias


def _bert(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    projections = (self.query, self.key, self.value)
    q, k, v = (_heads(project(hidden_states), self.attention_head_size) for project in projections)
    return _attend(self, q, k, v, attention_mask, self.dropout.p), None
