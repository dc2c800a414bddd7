"""What a round adds to a peer's row, from the neighbours' rows that both ends agreed on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.federation.aggregators import Aggregator
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.neighbours import bounded_weight, combined, difference, moved
from fedloom.model.bank import Row, usable
from fedloom.runtimes.libp2p.journal import Journal
from fedloom.runtimes.libp2p.shelf import Shelf

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixingRule:
    """How a peer mixes; the same for all of a run.

    Attributes:
        most: How far a neighbour may move this peer's row in a round; see `bounded_weight`. 0 is no bound.
        step: What Metropolis weights are multiplied by.
        aggregator: What combines the neighbours' differences.
        name: Its name, for the journal.
    """

    most: float = 0.0
    step: float = 1.0
    aggregator: Aggregator = weighted_mean
    name: str = "mean"

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
    """

    differences: list[Row] = field(default_factory=list)
    row: dict[int, float] = field(default_factory=dict)
    in_doubt: list[int] = field(default_factory=list)
    bounded: list[int] = field(default_factory=list)
    late: list[dict[str, Any]] = field(default_factory=list)

    @property
    def neighbours(self) -> list[int]:
        """With whom the round was mixed."""
        return [*self.row]

    @property
    def own(self) -> float:
        """The weight that the peer keeps for itself."""
        return 1.0 - sum(self.row.values())


def mean_of_neighbours(
    journal: Journal, shelf: Shelf, neighbours: Sequence[int], round_: int, own: Row, rule: MixingRule
) -> Mix:
    """W_ij (w_j − w_i) of every edge that was agreed on; one in doubt is kept, to be added late if it counts.

    Args:
        journal: What was agreed on.
        shelf: What was heard.
        neighbours: Their numbers, ascending.
        round_: Which round.
        own: What this peer trained.
        rule: How to mix.
    """
    mix = Mix()
    for peer in neighbours:
        key = (round_, peer)
        heard = shelf.heard(key)
        if key not in journal.weights or heard is None:
            continue
        whole, commit = journal.weights[key], journal.decisions.get(key)
        weight = bounded_weight(own, heard, whole, rule.most)
        if weight < whole:
            mix.bounded.append(peer)
        if commit:
            mix.row[peer] = weight
            mix.differences.append(difference(own, heard, weight))
        elif commit is None:
            shelf.save_doubt(key, difference(own, heard, weight), weight)
            mix.in_doubt.append(peer)
    return mix


def aggregate_of_neighbours(
    journal: Journal,
    shelf: Shelf,
    neighbours: Sequence[int],
    round_: int,
    own: Row,
    number: int,
    rule: MixingRule,
) -> Mix:
    """What any aggregator makes of the rows that were agreed on, and of this peer's own.

    It keeps no mean over peers, so that an edge in doubt is left out, and nothing is owed later. A
    neighbour's difference is scaled down where its root mean square is more than the bound.

    Args:
        journal: What was agreed on.
        shelf: What was heard.
        neighbours: Their numbers, ascending.
        round_: Which round.
        own: What this peer trained.
        number: This peer.
        rule: How to mix.
    """
    mix, differences = Mix(), {}
    own = {name: t.cpu() for name, t in own.items()}
    for peer in neighbours:
        key = (round_, peer)
        heard = shelf.heard(key)
        if key not in journal.weights or heard is None:
            continue
        commit = journal.decisions.get(key)
        if commit:
            share = bounded_weight(own, heard, 1.0, rule.most)
            if share < 1:
                mix.bounded.append(peer)
            mix.row[peer] = journal.weights[key]
            differences[peer] = difference(own, heard, share)
        elif commit is None:
            mix.in_doubt.append(peer)
    weights = {**mix.row, number: mix.own}
    change = combined(rule.aggregator, own, number, differences, weights)
    if usable(moved(own, [change])):
        mix.differences.append(change)
    else:
        log.warning(
            "round %d: goes on with its own row, what %s makes of the neighbours' is too large",
            round_,
            rule.name,
        )
    return mix
