"""What comes back from clients, and how it becomes one change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from fedloom.data.randomness import derive_seed
from fedloom.errors import UserError
from fedloom.federation.aggregators import Changes, StatefulAggregator, combine
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import SENT, Algorithm, part_of, with_prefix
from fedloom.federation.privacy.user import clipped, is_within
from fedloom.federation.secure_sum import SecureSum
from fedloom.federation.update import Update, decode_update
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank, Row, norm_of, usable

STATISTICS = ("examples", "loss", "steps", "tokens")
"""What of an update an aggregator sees beside the change."""


@dataclass(frozen=True)
class Collected:
    """Some clients' answers.

    Attributes:
        total: Σ_k n_k Δ_k, where the aggregator is the mean; else empty. Under privacy n_k is 1.
        deltas: Δ_k by client, where it is another, and what its rule sent beside it; else empty.
        sent: Σ_k of what rules sent, where it is the mean.
        memories: What clients remember, by client, where that is kept here.
        kept: Updates that count, without tensors.
        left_out: Clients whose loss or update was not finite, or too large.
        bytes_up: Of all that came.
        unclipped: How many of them were within the clip before it was applied.
    """

    total: Row
    deltas: dict[int, Row] = field(default_factory=dict)
    sent: Row = field(default_factory=dict)
    memories: dict[int, Row] = field(default_factory=dict)
    kept: list[Update] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    bytes_up: int = 0
    unclipped: int = 0


Reduce = Callable[[Collected], Collected]
"""``collected here -> collected everywhere``: where clients run is the runtime's business."""


@dataclass(frozen=True)
class Aggregate:
    """The clients' answers, combined.

    Attributes:
        pseudo_gradient: −Δ / client_lr, with Δ the combined change; None when no client's answer counts. For
            one local SGD step and the mean it is the mean gradient, hence its name (Reddi et al., 2021,
            arXiv:2003.00295).
        sent: What their rules sent, combined in the same way: who may not move the change may not move it.
            Clients count alike.
        collected: What came.
        fold: Factors of the base's change; empty where the aggregator does not change it.
        clip: Of the next round; see `privacy.user`.
        state: What the aggregator remembers.
    """

    pseudo_gradient: Row | None
    sent: Row
    collected: Collected
    fold: Row = field(default_factory=dict)
    clip: float = math.inf
    state: Row = field(default_factory=dict)


def aggregate(
    before: Row,
    updates: Iterable[Update],
    algorithm: Algorithm,
    reduce: Reduce = lambda local: local,
    round_: int = 0,
    clip: float = math.inf,
    state: Row | None = None,
) -> Aggregate:
    """Combine the clients' changes.

    The mean is added up in the order in which updates come, and they are not kept: memory does not grow with
    the number of clients, and the sum does not depend on how clients were grouped into waves. Any other
    aggregator gets all changes at once, in the order of the clients.

    Args:
        before: The adapter that every client started from.
        updates: The clients' answers; one is left out whose loss or change is not finite, or whose own
            pseudo-gradient is beyond `model.bank.largest_usable`: its square would not be finite.
        algorithm: What combines them, and decodes what they sent.
        reduce: Adds what other processes have collected; by default there are none.
        round_: Which round; what is drawn at random depends on it.
        clip: Largest norm of a change, where the algorithm is private.
        state: What the aggregator remembers of earlier rounds.
    """
    all_of_it = reduce(collect(before, updates, algorithm, clip))
    if algorithm.secure is not None:
        all_of_it = replace(all_of_it, total=_decoded(all_of_it, before, algorithm, algorithm.secure))
    if (privacy := algorithm.privacy) is not None:
        scale = -1.0 / (privacy.per_round * algorithm.client_lr)
        total = privacy.noised(all_of_it.total, clip, round_)
        after = privacy.next_clip(clip, len(all_of_it.kept), all_of_it.unclipped, round_)
        return Aggregate({name: t * scale for name, t in total.items()}, {}, all_of_it, clip=after)
    clients = len(all_of_it.kept)
    if not clients:
        return Aggregate(None, {}, all_of_it)
    examples = sum(update.examples for update in all_of_it.kept)
    if algorithm.aggregator is weighted_mean:
        sent = {name: t / clients for name, t in all_of_it.sent.items()}
        scale = -1.0 / (examples * algorithm.client_lr)
        return Aggregate({name: t.mul_(scale) for name, t in all_of_it.total.items()}, sent, all_of_it)
    weights = torch.tensor([update.examples / examples for update in all_of_it.kept], dtype=torch.float64)
    rows = [all_of_it.deltas[update.client] for update in all_of_it.kept]
    deltas = AdapterBank.stack([{name: row[name] for name in before} for row in rows])
    beside = AdapterBank.stack([part_of(row, SENT) for row in rows])
    scales = None
    if algorithm.ranks is not None:
        factors = [algorithm.ranks.weight(update.client) for update in all_of_it.kept]
        scales = torch.tensor(factors, dtype=torch.float64)
    seed = derive_seed(algorithm.seed, "aggregate", round_)
    statistics = {
        name: torch.tensor([getattr(update, name) for update in all_of_it.kept], dtype=torch.float64)
        for name in STATISTICS
    }
    senders = [update.client for update in all_of_it.kept]
    if beside.tensors and isinstance(algorithm.beside, StatefulAggregator):
        raise UserError(
            "client_rule: what clients send beside their change would be combined by the aggregator too, and "
            "this one remembers their changes; choose a client_rule that sends nothing, or another aggregator"
        )
    changes = Changes(
        before, deltas, weights, lora_pairs(before.keys()), scales, seed, senders, statistics, round_
    )
    change, after_it = combine(algorithm.aggregator, changes, state or {})
    sent = {}
    if beside.tensors:  # rows of numbers, without products
        alike = torch.full_like(weights, 1 / clients)
        zeros = beside.map(torch.zeros_like).row(0)
        together = Changes(
            zeros, beside, alike, seed=seed, senders=senders, statistics=statistics, round=round_
        )
        sent, _ = combine(algorithm.beside, together, {})
    gradient = {name: t / -algorithm.client_lr for name, t in change.items() if name in before}
    fold = {name: t for name, t in change.items() if name not in before}
    return Aggregate(gradient, sent, all_of_it, fold, state=after_it)


def collect(
    before: Row, updates: Iterable[Update], algorithm: Algorithm, clip: float = math.inf
) -> Collected:
    """Decode updates in the order in which they come, and add them up, or keep them."""
    streams = algorithm.aggregator is weighted_mean
    total = {name: torch.zeros_like(t) for name, t in before.items()} if streams else {}
    if algorithm.secure is not None:
        # Sums of numbers of two bytes have four, in which ranks can add them up.
        wide = algorithm.secure.like(before).items()
        total = {name: t.to(torch.promote_types(t.dtype, torch.int32)) for name, t in wide}
    found = Collected(total)
    bytes_up = unclipped = 0
    for update in updates:
        bytes_up += update.bytes
        if algorithm.secure is not None:
            if not math.isfinite(update.loss):
                found.left_out.append(update.client)
                continue
            for name, t in total.items():
                t.add_(update.payload[name].to(t.device))
            if update.memory:
                found.memories[update.client] = update.memory
            found.kept.append(replace(update, payload={}, memory={}))
            continue
        delta, sent = decode_update(algorithm, update.client, update.payload, before)
        delta, _ = clipped(delta, clip)  # a sender may not have done so, and a codec may round up
        if not (
            math.isfinite(update.loss) and usable(delta, scale=1.0 / algorithm.client_lr) and usable(sent)
        ):
            found.left_out.append(update.client)
            continue
        for name, t in total.items():
            t.add_(delta[name], alpha=1 if algorithm.privacy else update.examples)
        if not streams:
            row = delta | with_prefix(SENT, sent)
            found.deltas[update.client] = {name: t.clone() for name, t in row.items()}
        else:
            for name, t in sent.items():
                found.sent[name] = found.sent[name] + t if name in found.sent else t.clone()
        if update.memory:
            found.memories[update.client] = update.memory
        unclipped += is_within(update.payload)
        found.kept.append(replace(update, payload={}, memory={}, norm=norm_of(delta)))
    return replace(found, bytes_up=bytes_up, unclipped=unclipped)


def _decoded(found: Collected, before: Row, algorithm: Algorithm, secure: SecureSum) -> Row:
    """Σ_k n_k Δ_k, under privacy Σ_k Δ_k, of the sum of whole numbers."""
    if not found.kept:
        return {name: torch.zeros_like(t) for name, t in before.items()}
    mean, counts = secure.decode(found.total, before)
    return {name: t * (counts.clients if algorithm.privacy else counts.examples) for name, t in mean.items()}
