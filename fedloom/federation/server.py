"""A round with a server.

    FedAvg    McMahan et al., 2017, arXiv:1602.05629
    FedAdam   Reddi et al., 2021, arXiv:2003.00295
    FedProx   Li et al., 2020, arXiv:1812.06127

All three are one round. They differ in the server's optimiser (SGD or AdamW on the pseudo-gradient) and in
the clients' proximal term, both of which are arguments:

    S ← sample of the clients
    for k in S, in parallel:   w_k ← local SGD from w          (FedProx: + mu / 2 ||w_k − w||²)
    g ← Σ_k n_k (w − w_k) / (client_lr · Σ_k n_k)
    w ← optimiser(w, g)

With SGD at ``lr = client_lr`` the last two lines are ``w ← Σ_k n_k w_k / Σ_k n_k``, plain averaging of
models. Clients may be held to a part of w; `federation.focus` chooses which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from fedloom.client.optimisers import Optimiser, State, step_some
from fedloom.data.randomness import numpy_rng
from fedloom.federation.aggregate import Aggregate, ClientUpdate, Reduce, aggregate
from fedloom.model.bank import AdapterBank, Row, bytes_of, usable

Train = Callable[[int, Sequence[int], Row, Row], Iterable[ClientUpdate]]
"""``(round, clients, what they train and send, what they only use) -> updates of what they train``: where
clients run is the runtime's business."""


class Diverged(Exception):
    """Nothing finite came of a round, and it is not taken: the state before it stands."""


@dataclass(frozen=True)
class ServerState:
    """All that a server knows between rounds.

    Attributes:
        round: Rounds done.
        adapter: The shared adapter.
        optimiser: The server optimiser's state, a bank state of one row.
    """

    round: int
    adapter: Row
    optimiser: State


@dataclass(frozen=True)
class RoundReport:
    """What a round says of itself.

    Attributes:
        clients: Who was sampled, and had something to train.
        updates: What came back and counted, without adapters.
        left_out: Clients whose loss or update was not finite, or too large.
        bytes_up, bytes_down: As they would cross the wire, all clients together.
    """

    clients: list[int]
    updates: list[ClientUpdate]
    left_out: list[int]
    bytes_up: int
    bytes_down: int


def initial_state(adapter: Row, optimiser: Optimiser) -> ServerState:
    """The server's state before the first round."""
    return ServerState(0, adapter, optimiser.init(AdapterBank.repeat(adapter, 1)))


def sample_clients(seed: int, round_: int, clients: int, per_round: int) -> list[int]:
    """Clients of a round, without repetition, in ascending order; a function of (seed, round)."""
    chosen = numpy_rng(seed, "sample clients", round_).choice(clients, size=per_round, replace=False)
    return sorted(chosen.tolist())


def check_step(round_: int, adapter: Row, moments: State, updates: Sequence[ClientUpdate]) -> None:
    """Make sure that a step may be taken.

    Args:
        round_: Which round it ends.
        adapter: The adapter after it.
        moments: The optimiser's state after it.
        updates: What it was made of.

    Raises:
        Diverged: It is not finite; says whose update was the largest, clients counted from 1.
    """
    if usable(adapter) and all(bool(t.isfinite().all()) for t in moments.values()):
        return
    most = max(updates, key=lambda update: update.norm, default=None)
    whose = (
        f"; the largest update was that of client {most.client + 1}, of norm {most.norm:.3g}" if most else ""
    )
    raise Diverged(f"round {round_}: the server's step is not finite{whose}")


def federated_round(
    state: ServerState,
    clients: Sequence[int],
    train: Train,
    client_lr: float,
    optimiser: Optimiser,
    *,
    sent: Collection[str] | None = None,
    elsewhere: Row | None = None,
    reduce: Reduce = lambda here: here,
) -> tuple[ServerState, RoundReport]:
    """One round of FedAvg, FedAdam or FedProx.

    Args:
        state: The server's state.
        clients: Who takes part.
        train: Trains clients from the server's adapter; FedProx is in there.
        client_lr: The clients' learning rate, which turns their way into a gradient.
        optimiser: The server's.
        sent: Names of the parameters that clients train and send; None is all of them. With none at all,
            clients do nothing.
        elsewhere: A gradient for parameters that are not sent. One that has neither keeps its value, its
            moments and its step count.
        reduce: Where ``train`` gives the updates of a part of the clients: adds those of the others.

    Raises:
        Diverged: No client came back with finite numbers, or the server's own step is not finite.
    """
    trained = {name: t for name, t in state.adapter.items() if sent is None or name in sent}
    used = {name: t for name, t in state.adapter.items() if name not in trained}
    result = Aggregate({}, [], [])
    if trained:
        result = aggregate(trained, train(state.round, clients, trained, used), client_lr, reduce)
    if result.pseudo_gradient is None:
        raise Diverged(
            f"round {state.round + 1}: the loss or update of every client is not finite, or too large"
        )
    gradient = result.pseudo_gradient | (elsewhere or {})
    adapter, moments = step_some(optimiser, state.adapter, gradient, state.optimiser)
    check_step(state.round + 1, adapter, moments, result.kept)
    took_part = list(clients) if trained else []
    on_the_wire = bytes_of(trained) * len(took_part)
    report = RoundReport(took_part, result.kept, result.left_out, on_the_wire, on_the_wire)
    return ServerState(state.round + 1, adapter, moments), report
