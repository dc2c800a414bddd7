"""A peer's own row of w_i ← Σ_j W_ij w_j, from its neighbours' rows alone; see `federation.peers`.

    w_i ← w_i + Σ_j W_ij (w_j − w_i)        over the neighbours j whose edge was agreed on

W_ij is the Metropolis weight of the configured graph, so that an edge that fails gives its weight back to
both diagonals. What an edge adds at one end it takes at the other, W_ij (w_j − w_i) = −W_ij (w_i − w_j): the
mean over all peers stays what it was, also where one end adds its difference rounds later.

A bound on what one neighbour may move a row in a round lowers the weight of the edge, at both ends to the
same number: W stays symmetric and doubly stochastic, and what the edge loses goes back to both diagonals.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import torch

from fedloom.client.optimisers import State
from fedloom.data.randomness import derive_seed
from fedloom.federation.aggregators import NO_STATISTICS, Aggregator, Changes, StatefulAggregator, combine
from fedloom.federation.matrix import RoundMixing
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank, Row, finite, usable


def bounded_weight(row: Row, other: Row, weight: float, most: float) -> float:
    """W_ij, lowered where its difference would move a row by more than a bound.

    The difference is measured by its root mean square, ‖W_ij (w_j − w_i)‖ / √n with n numbers in a row. Both
    ends find the same weight to the bit, whatever their processors: squares are symmetric, and are added up
    one by one, in one order.

    Args:
        row: A row.
        other: The neighbour's, of the parameters that are mixed.
        weight: W_ij.
        most: The bound; 0 is none.
    """
    if most == 0:
        return weight
    total, count = 0.0, 0
    for name in sorted(other):
        apart = (other[name].cpu().double() - row[name].cpu().double()).flatten().numpy()
        if apart.size:
            # Not np.sum, whose order depends on the processor.
            total += float(np.cumsum(apart * apart)[-1])
            count += apart.size
    moved_by = weight * math.sqrt(total / max(count, 1))
    return weight if moved_by <= most else weight * (most / moved_by)


def difference(row: Row, other: Row, weight: float) -> Row:
    """W_ij (w_j − w_i) of the parameters that the neighbour sent."""
    # In float64, where what two rows of any numbers differ by is a number too.
    return {
        name: (weight * (t.double() - row[name].to(t.device).double())).to(t.dtype)
        for name, t in other.items()
    }


def combined(
    aggregator: Aggregator | StatefulAggregator,
    row: Row,
    peer: int,
    differences: Mapping[int, Row],
    weights: Mapping[int, float],
    state: Row,
    seed: int,
    round_: int,
) -> tuple[Row, Row]:
    """What a peer's row changes by, as an aggregator has it: of its neighbours' differences and its own, 0.

    With the mean it is Σ_j W_ij (w_j − w_i). A peer without neighbours stays where it is.

    Args:
        aggregator: Which.
        row: w_i, of the parameters that are sent.
        peer: Its number, from 0, as those of its neighbours.
        differences: w_j − w_i, by neighbour.
        weights: W_ij of each neighbour, and W_ii.
        state: What the aggregator remembers of this peer's earlier rounds.
        seed: Of the run.
        round_: Which round, from 0.

    Returns:
        The change, and what the aggregator remembers.
    """
    if not differences:
        return {}, state
    everybody = {**differences, peer: {name: torch.zeros_like(t) for name, t in row.items()}}
    senders = sorted(everybody)
    changes = Changes(
        row,
        AdapterBank.stack([everybody[sender] for sender in senders]),
        torch.tensor([weights[sender] for sender in senders], dtype=torch.float64),
        lora_pairs(row.keys()),
        seed=derive_seed(seed, "aggregate", round_, peer),
        senders=senders,
        statistics=NO_STATISTICS,
        round=round_,
    )
    return combine(aggregator, changes, state)


def moved(row: Row, differences: Iterable[Row]) -> Row:
    """A row with differences added, in their order; parameters that they do not have stay."""
    after = dict(row)
    for change in differences:
        for name, t in change.items():
            after[name] = after[name] + t.to(after[name].device)
    return after


def aggregate_each(
    bank: AdapterBank,
    aggregator: Aggregator | StatefulAggregator,
    mixing: RoundMixing,
    local: range,
    remembered: State,
    seed: int,
    round_: int,
    differences: Callable[[int, Collection[int]], Mapping[int, Row]],
) -> tuple[AdapterBank, State, list[int]]:
    """Every peer's own aggregate, for any aggregator.

    Other than a mean, what comes of usable rows may be of no use itself, such as a product that is too large,
    or compressed gossip with too large a step: such a peer goes on with the row that it has.

    Args:
        bank: The peers' rows, of what is sent.
        aggregator: Which.
        mixing: The round's matrix.
        local: The peers' numbers.
        remembered: What the peers' aggregator remembers, a row per peer.
        seed: Of the run.
        round_: Which round, from 0.
        differences: ``(peer, its neighbours) -> w_j − w_i by neighbour``, or what is known of it.

    Returns:
        The rows, what the aggregator remembers, and the peers that go on with the row that they have.
    """
    rows, states, lost = [], [], []
    for peer, weights in mixing.neighbourhoods(local).items():
        before = bank.row(peer - local.start)
        heard = differences(peer, weights.keys() - {peer})
        known = {name: t[peer - local.start] for name, t in remembered.items()}
        change, state = combined(aggregator, before, peer, heard, weights, known, seed, round_)
        after = moved(before, [change])
        if not (usable(after) and finite(state)):
            lost.append(peer)
            after, state = before, known
        rows.append(after)
        states.append(state)
    return AdapterBank.stack(rows), AdapterBank.stack(states).tensors, lost


def differences_among(
    bank: AdapterBank, numbers: list[int], peer: int, others: Collection[int]
) -> dict[int, Row]:
    """w_j − w_i by neighbour, of a bank with the rows of the peers of these numbers."""
    mine = bank.row(bisect_left(numbers, peer))
    rows = {other: bank.row(bisect_left(numbers, other)) for other in others}
    return {other: {name: t - mine[name] for name, t in row.items()} for other, row in rows.items()}
