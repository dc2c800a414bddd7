"""Who runs where: clients and peers dealt over ranks by their work, which is the tokens of a round."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.client.steps import Step, batch_tokens
from fedloom.client.work import ClientWork
from fedloom.model.layout import Layout


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Items for each rank, in ascending order: the largest first, each to the rank with the least so far.

    Loads then differ by at most the largest item.
    """
    loads = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        least = min(range(ranks), key=lambda rank: loads[rank])
        loads[least] += costs[item]
        dealt[least].append(item)
    return [sorted(items) for items in dealt]


def blocks(costs: Sequence[int], ranks: int) -> list[range]:
    """Consecutive items for each rank, at least one each.

    A cut comes where the sum so far is nearest to an equal share, so that loads differ by at most twice the
    largest item wherever items are not too few.

    Raises:
        ValueError: There are fewer items than ranks.
    """
    if len(costs) < ranks:
        raise ValueError(f"{len(costs)} items cannot give each of {ranks} ranks one")
    total, cuts, filled = sum(costs), [0], 0
    for item, cost in enumerate(costs):
        cut = len(cuts)  # the number of the next cut, behind which the next rank begins
        share = total * cut / ranks
        left = len(costs) - item
        due = filled + cost / 2 > share and item > cuts[-1]
        if cut < ranks and (due or left == ranks - cut):
            cuts.append(item)
        filled += cost
    return [range(first, last) for first, last in zip(cuts, [*cuts[1:], len(costs)], strict=True)]


def share_of(work: Sequence[ClientWork], layout: Layout, rank: int, ranks: int) -> list[ClientWork]:
    """The clients that a rank trains, dealt by the tokens that go through the model."""
    costs = [sum(batch_tokens(batch, layout) for step in one.steps for batch in step) for one in work]
    return [work[i] for i in deal(costs, ranks)[rank]]


def share_of_step(step: Step, layout: Layout, rank: int, ranks: int) -> Step:
    """The batches of one step that a rank takes; the gradients of all shares add up to the step's."""
    costs = [batch_tokens(batch, layout) for batch in step]
    return [step[i] for i in deal(costs, ranks)[rank]]
