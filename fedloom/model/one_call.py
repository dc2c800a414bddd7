"""Attention of all sequences of a packed pass in one call, on GPUs that have a kernel for uneven lengths.

FlashAttention-2 (Dao, 2023, arXiv:2307.08691) takes sequences end to end and where each begins, so that no
bucket is needed: queries stay where the pass has them, and so do keys, unless sequences share a prefix. Then
each sequence's keys are its prefix's and its own, and with fewer queries than keys the last query sees the
last key:

    tokens    p p p a a b b b        one client: a prefix of 3, sequences of 2 and 3
    queries   p p p|a a|b b b
    keys      p p p|p p p a a|p p p b b b

So a layer starts as many operations whatever the lengths are; with buckets it starts some for each of them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedloom.model.blocks import segment_sums
from fedloom.model.buckets import Rule, sequences_in_order
from fedloom.model.hardware import MOST_BLOCKS
from fedloom.model.pack import Pack

_MODULE = "torch.nn.attention.varlen"
_WIDEST = 256  # numbers of a head that the kernel knows, in steps of 8
_CAPABILITY = (8, 0)  # of the GPU
_EVERYTHING = -1  # of a window: no limit on this side


@dataclass(frozen=True)
class Ends:
    """Where the sequences of a pass and their keys stand.

    Attributes:
        query_bounds: Where each sequence's queries begin, and where the last ends.
        key_bounds: The same of its keys.
        longest: Queries and keys of the longest sequences.
        window: How far a query sees back and ahead; -1: as far as there is something.
        slots: The token at each key; None: keys are the tokens as they lie.
        home: The key that is each token's own.
        copies: Keys that are a prefix's, ``[sequences * shared]``.
        firsts: The first sequence of each prefix.
        prefixes: The prefixes' own tokens, ``[prefixes * shared]``.
    """

    query_bounds: Int[Tensor, " bounds"]
    key_bounds: Int[Tensor, " bounds"]
    longest: tuple[int, int]
    window: tuple[int, int]
    slots: Int[Tensor, " keys"] | None = None
    home: Int[Tensor, " tokens"] | None = None
    copies: Int[Tensor, " copies"] | None = None
    firsts: Int[Tensor, " prefixes"] | None = None
    prefixes: Int[Tensor, " shared"] | None = None


def plan_ends(pack: Pack, causal: bool, rule: Rule | None) -> Ends | None:
    """Lay out a packed pass for the kernel; None where the rule is no window, or sequences are too many.

    Args:
        pack: A packed pass.
        causal: A token sees only what stands before it.
        rule: What it sees of that; None: all of it.
    """
    sequences, shared, device = sequences_in_order(pack), pack.shared, pack.ids.device
    window = _window(pack.longest, causal, rule)
    if window is None or (shared and not causal) or len(sequences) > MOST_BLOCKS:
        return None
    lengths = torch.tensor([s.length for s in sequences])
    before = torch.tensor([s.shared for s in sequences])
    query_bounds, key_bounds = _bounds(lengths), _bounds(before + lengths)
    longest = int(lengths.max()), int((before + lengths).max())
    ends = Ends(query_bounds.int().to(device), key_bounds.int().to(device), longest, window)
    if not shared:
        return ends
    # Of every key: its place in its sequence, and so the token that it is.
    sequence = torch.repeat_interleave(before + lengths)
    place = torch.arange(int(key_bounds[-1])) - key_bounds[sequence]
    own = place >= before[sequence]
    prefix = torch.tensor([s.prefix_start for s in sequences])
    token = torch.where(own, query_bounds[sequence] + place - before[sequence], prefix[sequence] + place)
    owners, counts = prefix[before > 0].unique_consecutive(return_counts=True)
    prefixes = owners[:, None] + torch.arange(shared)
    return replace(
        ends,
        slots=token.to(device),
        home=own.nonzero()[:, 0].to(device),
        copies=(~own).nonzero()[:, 0].to(device),
        firsts=(counts.cumsum(0) - counts).to(device),
        prefixes=prefixes.flatten().to(device),
    )


def _bounds(lengths: Int[Tensor, " sequences"]) -> Int[Tensor, " bounds"]:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _window(longest: int, causal: bool, rule: Rule | None) -> tuple[int, int] | None:
    """How far queries see back and ahead; None where no such limits say what they see."""
    ahead = 0 if causal else _EVERYTHING
    if rule is None:
        return _EVERYTHING, ahead
    place = torch.arange(longest)
    query, everything = place[:, None], (_EVERYTHING, ahead)
    seen = rule(query, place)
    if causal:
        seen = seen & (place <= query)
    if torch.equal(seen, _within(query, place, everything)):
        return everything
    back = int((place - seen.byte().argmax(1)).max())  # from each query to the first key that it sees
    limits = back, 0 if causal else back
    return limits if torch.equal(seen, _within(query, place, limits)) else None


def _within(
    query: Int[Tensor, "queries 1"], key: Int[Tensor, " keys"], window: tuple[int, int]
) -> Bool[Tensor, "queries keys"]:
    # Of places alone: a matrix of distances would be eight times as large.
    far = len(query) + len(key)
    back, ahead = (far if limit == _EVERYTHING else limit for limit in window)
    return (key >= query - back) & (key <= query + ahead)


class _ToKeys(torch.autograd.Function):
    """Tokens' keys and values -> each sequence's, its prefix's first; backward adds up the copies."""

    @staticmethod
    def forward(ctx, key, value, ends):
        ctx.ends, ctx.dim = ends, key.shape[-1]
        both = torch.cat([key, value], -1).index_select(0, ends.slots)
        return both[..., : ctx.dim], both[..., ctx.dim :]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_key, grad_value):
        ends, every = ctx.ends, torch.cat([grad_key, grad_value], -1)
        grad = every.index_select(0, ends.home)
        shared = ends.prefixes.numel() // ends.firsts.numel()
        copies = every.index_select(0, ends.copies).view(-1, shared * every[0].numel())
        sums = segment_sums(copies, ends.firsts)
        grad.index_add_(0, ends.prefixes, sums.view(-1, *grad.shape[1:]))  # no token is twice among them
        return grad[..., : ctx.dim], grad[..., ctx.dim :], None


def attend(
    query: Float[Tensor, "tokens heads dim"],
    key: Float[Tensor, "tokens key_heads dim"],
    value: Float[Tensor, "tokens key_heads dim"],
    ends: Ends,
    scale: float,
) -> Float[Tensor, "tokens heads dim"]:
    """Softmax attention of every sequence of a pass.

    Args:
        query: Of all tokens of the pass.
        key: Likewise, of as many or fewer heads.
        value: Likewise.
        ends: Where the sequences stand.
        scale: Of the scores.
    """
    if ends.slots is not None:
        key, value = _ToKeys.apply(key, value, ends)
    return kernel(query, key, value, ends, scale)


def kernel(query: Tensor, key: Tensor, value: Tensor, ends: Ends, scale: float) -> Tensor:
    """torch's FlashAttention; ``key`` and ``value`` are each sequence's, end to end."""
    # Which arguments it takes depends on torch's version.
    varlen_attn: Any = importlib.import_module(_MODULE).varlen_attn
    out: Tensor = varlen_attn(
        query,
        key,
        value,
        ends.query_bounds,
        ends.key_bounds,
        *ends.longest,
        scale=scale,
        window_size=ends.window,
        **_grouped(query.shape[1] != key.shape[1]),
    )
    return out


def knows(query: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for such queries and values, which this installation runs rightly."""
    dim = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and dim == value.shape[-1]
        and dim % 8 == 0
        and dim <= _WIDEST
        and _works(query.device, query.dtype)
    )


@functools.cache
@torch.enable_grad()  # it may be asked first while validating
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Try the kernel on a prefix and a sequence, forward and backward, against plain softmax attention.

    With each kind of window: a kernel that left them out would train another model without a word.
    """
    if torch.cuda.get_device_capability(device) < _CAPABILITY or not _can_be_called():
        return False
    generator = torch.Generator().manual_seed(0)
    dim = 32
    drawn = [
        torch.randn(tokens, heads, dim, generator=generator)
        for tokens, heads in ((5, 2), (8, 1), (8, 1), (5, 2))
    ]
    query, key, value, grad = (t.to(device, dtype) for t in drawn)
    inputs = [query.requires_grad_(), key.requires_grad_(), value.requires_grad_()]
    of_queries, of_keys = (
        torch.tensor(bounds, device=device, dtype=torch.int32) for bounds in ([0, 3, 5], [0, 3, 8])
    )

    def plain(window: tuple[int, int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = []
        for q, k, v in ((query[:3], key[:3], value[:3]), (query[3:], key[3:], value[3:])):
            last, place = len(k) - len(q), torch.arange(len(k), device=device)
            seen = _within(last + place[: len(q), None], place, window)
            scores = torch.einsum("qhd,kd->hqk", q, k[:, 0]).mul(dim**-0.5)
            scores = scores.masked_fill(~seen, -torch.inf)
            parts.append(torch.einsum("hqk,kd->qhd", scores.softmax(-1), v[:, 0]))
        return torch.cat(parts)

    wide = [t.detach().float().requires_grad_() for t in inputs]
    for window in ((_EVERYTHING, 0), (1, 0), (_EVERYTHING, _EVERYTHING), (1, 1)):
        ends = Ends(of_queries, of_keys, (3, 5), window)
        try:
            found = kernel(query, key, value, ends, dim**-0.5)
            gradients = torch.autograd.grad(found, inputs, grad)
        except RuntimeError:  # torch was built without it
            return False
        right = plain(window, *wide)
        pairs = zip(
            (found, *gradients), (right, *torch.autograd.grad(right, wide, grad.float())), strict=True
        )
        if not all(torch.allclose(one.float(), other, atol=0.1, rtol=0.05) for one, other in pairs):
            return False
    return True


@functools.cache
def _arguments() -> frozenset[str]:
    """What torch's function takes; nothing where torch has none."""
    try:
        module = importlib.import_module(_MODULE)
    except ImportError:  # torch before 2.10
        return frozenset()
    return frozenset(inspect.signature(module.varlen_attn).parameters)


def _can_be_called() -> bool:
    return {"scale", "window_size"} <= _arguments()


def _grouped(grouped: bool) -> dict[str, bool]:
    """Heads in groups have to be asked for from torch 2.12 on; before, nobody asks."""
    return {"enable_gqa": grouped} if "enable_gqa" in _arguments() else {}
