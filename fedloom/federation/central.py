"""The baseline without federation: one adapter, AdamW, all data in one place."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedloom.client.local import LocalResult
from fedloom.client.optimisers import State
from fedloom.federation.server import Diverged, RoundReport, ServerState, check_step
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, usable

Train = Callable[[int, AdapterBank, State], tuple[LocalResult, int]]
"""``(round, bank of one row, optimiser state) -> (result, examples used)``."""


def central_round(state: ServerState, train: Train) -> tuple[ServerState, RoundReport]:
    """As many steps as `train` takes; moments last from round to round, and nothing crosses a wire.

    Raises:
        Diverged: The loss or the step is not finite; there is nobody else to go on with.
    """
    result, examples = train(state.round, AdapterBank.repeat(state.adapter, 1), state.optimiser)
    adapter = result.bank.row(0)
    update = Update(
        0, {}, examples, float(result.loss), int(result.correct), int(result.labels), int(result.tokens)
    )
    if not (math.isfinite(update.loss) and usable(adapter)):
        raise Diverged(f"round {state.round + 1}: the loss or the update is not finite")
    check_step(state.round + 1, adapter, result.state, [])
    report = RoundReport([], [update], [], 0, 0)
    return ServerState(state.round + 1, adapter, result.state), report
