"""Sort the sequences of a packed pass into buckets, and work out how rows travel there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedloom.model import blocks
from fedloom.model.bucket import Bucket, Share, Shares
from fedloom.model.pack import Pack

# A bucket holds sequences no shorter than this share of its longest: fewer, larger products
# for some pad queries, in attention alone.
_FILL = 0.6

Rule = Callable[[Int[Tensor, "queries 1"], Int[Tensor, " keys"]], Bool[Tensor, "queries keys"]]
"""Which keys a query may see, by their positions within one sequence: causality, a window, a chunk."""


@dataclass(frozen=True)
class Buckets:
    """All buckets of a pass, and how rows travel between the pass and them.

    Attributes:
        buckets: Every sequence is in one of them; a shared prefix is a sequence of its own, too.
        query_slots, key_slots: The row at each slot, bucket after bucket.
        query_home, key_home: The slot of each row.
        query_pads: Slots that hold no query.
        query_sizes, key_sizes: Slots per bucket.
        shares: Who else sees the prefixes.
        run_pairs: Query-key-head triples of each run that draws dropout apart.
    """

    buckets: tuple[Bucket, ...]
    query_slots: Tensor
    key_slots: Tensor
    query_home: Tensor
    key_home: Tensor
    query_pads: Tensor
    query_sizes: list[int]
    key_sizes: list[int]
    shares: tuple[Share | Shares, ...]
    run_pairs: tuple[int, ...]


class Sequence(NamedTuple):
    """A sequence that is attended to on its own; what it shares stands at ``prefix_start``."""

    start: int
    length: int
    prefix_start: int
    shared: int


def plan_buckets(pack: Pack, causal: bool, rule: Rule | None, heads: int, key_heads: int) -> Buckets:
    """Sort a packed pass's sequences into buckets.

    Args:
        pack: A packed pass.
        causal: A token sees only what stands before it.
        rule: What it sees of that (where it may look ahead: of its whole sequence); None: all of it.
        heads: Query heads.
        key_heads: Key and value heads.
    """
    sequences = sequences_in_order(pack)
    first_pairs, run_pairs = _pairs(pack, sequences, heads)
    buckets = tuple(
        _bucket(
            [sequences[i] for i in group],
            [first_pairs[i] for i in group],
            causal,
            rule,
            heads,
            key_heads,
            pack,
        )
        for group in _groups(sequences)
    )
    device = pack.ids.device
    query_slots, query_home, query_pads = _slots([b.query_rows() for b in buckets], pack.ids.numel() * heads)
    key_slots, key_home, _ = _slots([b.key_rows() for b in buckets], pack.ids.numel() * key_heads)
    return Buckets(
        buckets=buckets,
        query_slots=query_slots.to(device),
        key_slots=key_slots.to(device),
        query_home=query_home.to(device),
        key_home=key_home.to(device),
        query_pads=query_pads.to(device),
        query_sizes=[b.batch * b.group * b.longest for b in buckets],
        key_sizes=[b.batch * (b.shared + b.longest) for b in buckets],
        shares=tuple(_shares(buckets, pack)),
        run_pairs=run_pairs,
    )


def sequences_in_order(pack: Pack) -> list[Sequence]:
    """All sequences, each client's prefix before its own, as they lie in the pass."""
    found: list[Sequence] = []
    for start, length, prefix in zip(pack.starts, pack.lengths, pack.prefix_starts, strict=True):
        if pack.shared and (not found or found[-1].prefix_start != prefix):
            found.append(Sequence(prefix, pack.shared, prefix, 0))
        found.append(Sequence(start, length, prefix, pack.shared))
    return found


def _groups(sequences: list[Sequence]) -> Iterator[list[int]]:
    """Indices of sequences that share a bucket: the same shared length, similar lengths, in pass order."""
    order = sorted(range(len(sequences)), key=lambda i: (sequences[i].shared, -sequences[i].length))
    group: list[int] = []
    for i in order:
        head = sequences[group[0]] if group else None
        if head and (head.shared != sequences[i].shared or sequences[i].length < _FILL * head.length):
            yield sorted(group)
            group = []
        group.append(i)
    yield sorted(group)


def _bucket(
    sequences: list[Sequence],
    first_pairs: list[int],
    causal: bool,
    rule: Rule | None,
    heads: int,
    key_heads: int,
    pack: Pack,
) -> Bucket:
    lengths = torch.tensor([s.length for s in sequences])
    shared = sequences[0].shared
    visible, plain = _visible(lengths, shared, causal, rule)
    return Bucket(
        starts=torch.tensor([s.start for s in sequences]),
        lengths=lengths,
        prefix_starts=torch.tensor([s.prefix_start for s in sequences]),
        shared=shared,
        visible=None if visible is None else visible.to(pack.ids.device),
        causal_only=causal and not shared and plain,
        heads=heads,
        key_heads=key_heads,
        first_pairs=torch.tensor(first_pairs),
    )


def _visible(
    lengths: Tensor, shared: int, causal: bool, rule: Rule | None
) -> tuple[Bool[Tensor, "masks longest keys"] | None, bool]:
    """What each query may see (None: everything), and whether that is all that causality allows."""
    longest = int(lengths.max())
    query = shared + torch.arange(longest)[:, None]
    key = torch.arange(shared + longest)
    allowed = None if rule is None else rule(query, key)
    if causal:
        # Pads stand at the end, where no real query of a causal model looks.
        below = key <= query
        seen = below if allowed is None else below & allowed
        return seen[None], torch.equal(seen, below)
    length = lengths[:, None, None]
    if allowed is not None and not bool(allowed.all()):
        # A pad sees pads, so that every query sees something.
        return allowed & ((key < length) | (query >= length)), False
    if bool((lengths == longest).all()):
        return None, False
    return (key < length).expand(-1, longest, -1), False


def _pairs(pack: Pack, sequences: list[Sequence], heads: int) -> tuple[list[int], tuple[int, ...]]:
    """Where each sequence's query-key-head triples start, and how many each run has."""
    counts = [heads * s.length * (s.shared + s.length) for s in sequences]
    firsts = list(accumulate(counts, initial=0))[:-1]
    run_pairs, i = [], 0
    for tokens in pack.run_tokens:
        pairs = 0
        while tokens > 0:
            tokens -= sequences[i].length
            pairs += counts[i]
            i += 1
        run_pairs.append(pairs)
    return firsts, tuple(run_pairs)


def _slots(rows: list[tuple[Tensor, Tensor]], total: int) -> tuple[Tensor, Tensor, Tensor]:
    """The row at each slot, the slot of each row, and the slots that are nobody's home."""
    slots = torch.cat([r for r, _ in rows])
    is_home = torch.cat([h for _, h in rows])
    home = torch.empty(total, dtype=torch.long)
    at = is_home.nonzero()[:, 0]
    home[slots[at]] = at
    return slots, home, (~is_home).nonzero()[:, 0]


def _shares(buckets: tuple[Bucket, ...], pack: Pack) -> Iterator[Share | Shares]:
    device = pack.ids.device
    for index, bucket in enumerate(buckets):
        if not bucket.shared:
            continue
        owners, counts = bucket.prefix_starts.unique_consecutive(return_counts=True)
        heads, shared = bucket.key_heads, bucket.shared
        view = (heads, len(bucket.lengths), shared + bucket.longest)
        if blocks.pay(device, pack.client_tokens):
            token = owners[:, None, None] + torch.arange(shared)  # [prefixes, 1, shared]
            rows = token * heads + torch.arange(heads)[:, None]
            firsts = counts.cumsum(0) - counts
            yield Shares(index, rows.flatten().to(device), view, firsts.to(device), shared)
            continue
        first = 0
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            yield Share(
                index,
                slice(owner * heads, (owner + shared) * heads),
                view,
                first,
                first + count,
                shared,
            )
            first += count
