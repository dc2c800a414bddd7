"""What a client does in a round: its next batches, grouped into optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.client.local import MeanOver, Step, mean_step
from fedloom.data.draws import draw_batches
from fedloom.data.encode import Tokens
from fedloom.model.layout import Layout


@dataclass(frozen=True)
class Schedule:
    """How much a client does in a round.

    Attributes:
        batches: Batches it draws, going on where it stopped the last time.
        batch_size: Examples per batch.
        epochs: How often it goes through them.
        accumulate: Batches per optimiser step.
        mean_over: What counts the same among them; see `mean_step`.
    """

    batches: int
    batch_size: int
    epochs: int = 1
    accumulate: int = 1
    mean_over: MeanOver = "tokens"


@dataclass(frozen=True)
class ClientWork:
    """A client's work in a round.

    Attributes:
        client: Which client.
        steps: Its optimiser steps.
        examples: Examples in them.
    """

    client: int
    steps: list[Step]
    examples: int


def plan_work(
    data: Sequence[Tokens],
    indices: np.ndarray,
    schedule: Schedule,
    layout: Layout,
    *,
    seed: int,
    client: int,
    round_: int,
    drawn: int,
) -> ClientWork:
    """A client's next optimiser steps.

    Args:
        data: All sequences.
        indices: Which of them are this client's.
        schedule: How much it does.
        layout: The model's.
        seed: The run's.
        client: Which client.
        round_: The round, from 0; dropout depends on it.
        drawn: Batches that the client has drawn in earlier rounds.
    """
    drawn_now = draw_batches(
        indices, seed=seed, client=client, start=drawn, count=schedule.batches, batch_size=schedule.batch_size
    )
    batches = [[data[i] for i in batch] for batch in drawn_now] * schedule.epochs
    steps: list[Step] = []
    for start in range(0, len(batches), schedule.accumulate):
        group = batches[start : start + schedule.accumulate]
        keys = [(round_, client, len(steps), i) for i in range(len(group))]
        steps.append(mean_step(group, layout, keys, schedule.mean_over))
    return ClientWork(client, steps, sum(map(len, batches)))
