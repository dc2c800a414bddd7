"""What a client does in a round: its next batches, grouped into optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.client.private import ExamplePrivacy, Noised, rate_of
from fedloom.client.steps import MeanOver, Step, mean_step
from fedloom.data.draws import draw_batches
from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch, Layout, counted


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

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        return -(-self.batches * self.epochs // self.accumulate)

    @property
    def per_step(self) -> int:
        """Examples of a step."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class ClientWork:
    """A client's work in a round.

    Attributes:
        client: Which client.
        steps: Its optimiser steps.
        examples: Examples in them; where the steps hide them, as many as there are on average.
        noised: Whose steps are noised, where they are.
    """

    client: int
    steps: list[Step]
    examples: int
    noised: Noised | None = None


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
    privacy: ExamplePrivacy | None = None,
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
        privacy: How its steps hide its examples; None: not at all, and it goes through them in turn.
    """
    if privacy is not None:
        return _private_work(data, indices, schedule, layout, privacy, client, round_)
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


def _private_work(
    data: Sequence[Tokens],
    indices: np.ndarray,
    schedule: Schedule,
    layout: Layout,
    privacy: ExamplePrivacy,
    client: int,
    round_: int,
) -> ClientWork:
    """Steps of which each draws each example by itself; an example is a batch of its own.

    Its dropout is by its own place among the client's data: by its place in the step, whoever else is drawn
    would change it, and one example more would move the sum by more than its own gradient.
    """
    steps: list[Step] = []
    for index in range(schedule.steps):
        drawn = privacy.draw(len(indices), schedule.per_step, client, round_, index)
        found = [(place, data[int(indices[place])]) for place in drawn]
        steps.append(
            [
                Batch([tokens], 1 / counted(tokens, layout), (round_, client, index, place))
                for place, tokens in found
            ]
        )
    expected = rate_of(len(indices), schedule.per_step) * len(indices)
    most = schedule.batches * schedule.batch_size * schedule.epochs
    examples = max(1, min(most, round(expected * schedule.steps)))
    return ClientWork(client, steps, examples, Noised(client, round_, expected))
