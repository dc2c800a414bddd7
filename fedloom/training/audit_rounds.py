"""What an audit at either level does: a run's own rounds, of which it sees what optimisers are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedloom.client.optimisers import Optimiser, State
from fedloom.errors import UserError
from fedloom.federation.server import Diverged, ServerState
from fedloom.federation.transport import ClientTransport
from fedloom.model.bank import AdapterBank
from fedloom.training.fed import first_progress
from fedloom.training.fed_rounds import ServerProgress, play_round
from fedloom.training.private import secret_key
from fedloom.training.setup_fed import Parts


@dataclass(frozen=True)
class Played:
    """What rounds with canaries came to.

    Attributes:
        scores: Of each canary.
        included: Whether it was there.
        server: Where the run stands.
        epsilon: What was proven of the canaries; infinite without noise.
        delta: δ of it.
    """

    scores: np.ndarray
    included: np.ndarray
    server: ServerState
    epsilon: float
    delta: float


def with_key(parts: Parts) -> Parts:
    """A run with the key of its noise, as at every start: a secret one, or the seed that was asked for."""
    privacy = parts.algorithm.privacy
    if privacy is None or parts.budget is None:
        return parts
    key = secret_key() if parts.budget.seed is None else parts.budget.seed
    return replace(parts, algorithm=replace(parts.algorithm, privacy=replace(privacy, key=key)))


def played_rounds(
    parts: Parts, rounds: int, transport: Callable[[ServerProgress], ClientTransport]
) -> Iterator[tuple[ServerProgress, ServerProgress]]:
    """Play a run's rounds, as many as its budget allows.

    Args:
        parts: What the run is made of.
        rounds: How many at most.
        transport: How clients are reached from where the run stands.

    Yields:
        Where it stands before a round, and after it.

    Raises:
        UserError: Nothing finite came of a round, or the budget is too small for one.
    """
    now = first_progress(parts)
    while now.server.round < rounds:
        if parts.budget is not None and (why := parts.budget.reason_to_stop(now.server.round, now.drawn)):
            if now.server.round == 0:
                raise UserError(
                    f"target_epsilon: there is not one round to audit, {why}; raise target_epsilon, or "
                    "noise_multiplier"
                )
            return
        try:
            after, _ = play_round(parts, now, transport(now))
        except Diverged as error:
            raise UserError(f"{error}; lower client_lr or lr, and audit again") from error
        yield now, after
        now = after


def watched(optimiser: Optimiser, see: Callable[[AdapterBank, AdapterBank], None]) -> Optimiser:
    """An optimiser that shows what it is given.

    Args:
        optimiser: Which.
        see: Is given the parameters and their gradients before every step.
    """

    def step(
        bank: AdapterBank, gradients: AdapterBank, state: State, active: torch.Tensor
    ) -> tuple[AdapterBank, State]:
        see(bank, gradients)
        return optimiser.step(bank, gradients, state, active)

    return Optimiser(optimiser.init, step)
