"""What a round adds to a peer's row, from the neighbours' rows that both ends agreed on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedloom.federation.aggregators import Aggregator, StatefulAggregator
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.neighbours import bounded_weight, combined, difference, moved
from fedloom.model.bank import Row, finite, usable
from fedloom.runtimes.libp2p.compressed import Compression, both_ends
from fedloom.runtimes.libp2p.journal import Journal
from fedloom.runtimes.libp2p.peer_store import PeerStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixingRule:
    """How a peer mixes; the same for all of a run.

    Attributes:
        most: How far a neighbour may move this peer's row in a round; see `bounded_weight`. 0 is no bound.
        step: What Metropolis weights are multiplied by.
        aggregator: What combines the neighbours' differences.
        name: Its name, for the journal.
        compression: How rows are compressed; None: they are sent as they are.
        seed: Of the run.
    """

    most: float = 0.0
    step: float = 1.0
    aggregator: Aggregator | StatefulAggregator = weighted_mean
    name: str = "mean"
    compression: Compression | None = None
    seed: int = 0

    @property
    def keeps_mean(self) -> bool:
        """Whether the mean over peers stays what it was, so that an edge in doubt is owed until it counts."""
        return self.aggregator is weighted_mean


@dataclass(frozen=True)
class Mix:
    """What a round adds to a peer's row.

    Attributes:
        differences: To be added, in this order.
        row: The neighbours with whom the round was mixed, and their weights.
        in_doubt: Neighbours whose decision is not known yet.
        bounded: Neighbours whose difference was lowered, because their rows were too far away.
        late: Rounds of edges that were in doubt until now: ``round``, ``peer``, ``weight``.
        remembered: What the aggregator remembers after it.
    """

    differences: list[Row] = field(default_factory=list)
    row: dict[int, float] = field(default_factory=dict)
    in_doubt: list[int] = field(default_factory=list)
    bounded: list[int] = field(default_factory=list)
    late: list[dict[str, Any]] = field(default_factory=list)
    remembered: Row = field(default_factory=dict)

    @property
    def neighbours(self) -> list[int]:
        """With whom the round was mixed."""
        return [*self.row]

    @property
    def own(self) -> float:
        """The weight that the peer keeps for itself."""
        return 1.0 - sum(self.row.values())


@dataclass(frozen=True)
class Agreed:
    """An edge's round as one end sees it after the exchange.

    Attributes:
        peer: The neighbour.
        own, other: This peer's row and the neighbour's, as both ends know them.
        weight: W_ij.
        counts: Whether the edge counts; None while that is not known.
    """

    peer: int
    own: Row
    other: Row
    weight: float
    counts: bool | None


def agreed(
    journal: Journal,
    store: PeerStore,
    neighbours: Sequence[int],
    round_: int,
    row: Row,
    number: int,
    rule: MixingRule,
) -> Iterator[Agreed]:
    """The edges of a round that count, or may.

    Args:
        journal: What was agreed on.
        store: What was heard.
        neighbours: Their numbers, ascending.
        round_: Which round.
        row: What this peer trained.
        number: This peer.
        rule: How to mix.
    """
    row = {name: t.cpu() for name, t in row.items()}
    for peer in neighbours:
        key = (round_, peer)
        heard, counts = store.heard(key), journal.decisions.get(key)
        if key not in journal.weights or heard is None or counts is False:
            continue
        ours, theirs = row, heard
        if rule.compression is not None:
            ours, theirs = both_ends(rule.compression, journal, store, key, row, number, heard)
        yield Agreed(peer, ours, theirs, journal.weights[key], counts)


def mean_of_neighbours(edges: Iterable[Agreed], round_: int, store: PeerStore, most: float) -> Mix:
    """W_ij (w_j − w_i) of every edge that counts; of one in doubt it is kept, to be added late if it does.

    Args:
        edges: Of the round.
        round_: Which round.
        store: Where what is in doubt is kept.
        most: The bound of `MixingRule`.
    """
    mix = Mix()
    for edge in edges:
        weight = bounded_weight(edge.own, edge.other, edge.weight, most)
        if weight < edge.weight:
            mix.bounded.append(edge.peer)
        change = difference(edge.own, edge.other, weight)
        if edge.counts:
            mix.row[edge.peer] = weight
            mix.differences.append(change)
        else:
            store.save_doubt((round_, edge.peer), change, weight)
            mix.in_doubt.append(edge.peer)
    return mix


def aggregate_of_neighbours(
    edges: Iterable[Agreed],
    round_: int,
    trained: Row,
    number: int,
    rule: MixingRule,
    remembered: Row,
) -> Mix:
    """What any aggregator makes of the neighbours' differences, and of this peer's own.

    It keeps no mean over peers, so that an edge in doubt is left out, and nothing is owed later. A
    neighbour's difference is scaled down where its root mean square is more than the bound.

    Args:
        edges: Of the round.
        round_: Which round.
        trained: What this peer trained.
        number: This peer.
        rule: How to mix.
        remembered: What the aggregator remembers of earlier rounds; it is the same again after a crash.
    """
    mix, differences = Mix(remembered=remembered), {}
    trained = {name: t.cpu() for name, t in trained.items()}
    for edge in edges:
        if not edge.counts:
            mix.in_doubt.append(edge.peer)
            continue
        share = bounded_weight(edge.own, edge.other, 1.0, rule.most)
        if share < 1:
            mix.bounded.append(edge.peer)
        mix.row[edge.peer] = edge.weight
        differences[edge.peer] = difference(edge.own, edge.other, share)
    # Counted from 0, as `fedloom dfl` does.
    weights = {peer - 1: weight for peer, weight in {**mix.row, number: mix.own}.items()}
    heard = {peer - 1: row for peer, row in differences.items()}
    change, after = combined(
        rule.aggregator, trained, number - 1, heard, weights, remembered, rule.seed, round_ - 1
    )
    if usable(moved(trained, [change])) and finite(after):
        mix.differences.append(change)
        mix = replace(mix, remembered=after)
    else:
        log.warning(
            "round %d: goes on with its own row, what %s makes of the neighbours' is too large",
            round_,
            rule.name,
        )
    return mix
