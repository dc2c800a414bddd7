"""A round with a server.

    FedAvg    McMahan et al., 2017, arXiv:1602.05629
    FedProx   Li et al., 2020, arXiv:1812.06127
    FedAdam   Reddi et al., 2021, arXiv:2003.00295      and every other row of `methods.METHODS`

All are one round, made of the parts of an `Algorithm`. With w the server's adapter, of which clients train
and send the part that trains in this round, F how the base has changed, c what the server keeps for the
clients' rule, and c_k what client k remembers:

    S ← sample of the clients
    for k in S, in parallel:
        w_k, c_k, s_k ← local training from w by the rule, with c and c_k
        p_k ← encode(w_k − w)                                        at the client; p_k and s_k are sent
    Δ, F' ← aggregate({decode(p_k)}, weights n_k)
    Δ, c ← amend(Δ, c, |S| / N)                                     where the rule does so
    w ← optimiser(w, −Δ / client_lr)
    w ← refactor(w)                                                 other factors of the same products, where
                                                                    the LoRA aggregation does so
    F ← F + F'                                                      where the aggregator changes the base
    c ← absorb(c, mean of the s_k, |S| / N)                         S: those whose update counts

With the mean, and SGD at ``lr = client_lr``, it is ``w ← Σ_k n_k w_k / Σ_k n_k``, plain averaging of models.
Clients may be held to a part of w; `federation.focus` chooses which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from fedloom.client.local import LocalResult
from fedloom.client.optimisers import State, step_some
from fedloom.data.randomness import numpy_rng
from fedloom.federation.aggregate import Aggregate, Collected, Reduce, aggregate
from fedloom.federation.algorithm import RULE, Algorithm, with_prefix
from fedloom.federation.transport import Train
from fedloom.federation.update import Update, payload_like
from fedloom.model.adapters.folding import bytes_of_fold, folded
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank, Row, bytes_of, finite, usable


class Diverged(Exception):
    """Nothing finite came of a round, and it is not taken: the state before it stands."""


@dataclass(frozen=True)
class ServerState:
    """All that a server knows between rounds.

    Attributes:
        round: Rounds done.
        adapter: The shared adapter.
        optimiser: The server optimiser's state, a bank state of one row.
        rule: What the server keeps for the clients' rule; see `client.rules`.
        base: How the base has changed, by module; see `model.adapters.folding`.
        clip: Largest norm of a client's change in the next round; see `privacy.user`.
        selected: The layers that the last round trained, where the server chooses; see `federation.focus`.
        aggregator: What the aggregator remembers; see `aggregators.StatefulAggregator`.
    """

    round: int
    adapter: Row
    optimiser: State
    rule: Row = field(default_factory=dict)
    base: Row = field(default_factory=dict)
    clip: float = math.inf
    selected: tuple[int, ...] | None = None
    aggregator: Row = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """What a round says of itself.

    Attributes:
        clients: Who was sampled, and had something to train.
        updates: What came back and counted, without adapters.
        left_out: Clients whose loss or update was not finite, or too large.
        bytes_up, bytes_down: As they would cross the wire, all clients together; under privacy of as many as
            a round has on average, since their number would tell who was there.
        memories: What clients remember after it, where that is kept here; others remember what they did.
    """

    clients: list[int]
    updates: list[Update]
    left_out: list[int]
    bytes_up: int
    bytes_down: int
    memories: dict[int, Row] = field(default_factory=dict)


def initial_state(adapter: Row, algorithm: Algorithm, clients: int = 0) -> ServerState:
    """The server's state before the first round.

    Args:
        adapter: Where everybody begins.
        algorithm: Which.
        clients: How many there are, for an aggregator that remembers something of each.
    """
    names = algorithm.share(adapter.keys())
    shared = {name: t for name, t in adapter.items() if name in names}
    kept = algorithm.rule.kept(shared)
    moments = algorithm.server_optimiser.init(AdapterBank.repeat(adapter, 1))
    base = algorithm.first_base(adapter)
    clip = math.inf if algorithm.privacy is None else algorithm.privacy.clip
    remembered = algorithm.first_aggregator_state(shared, clients)
    return ServerState(0, adapter, moments, kept, base, clip, aggregator=remembered)


def sample_clients(seed: int, round_: int, clients: int, per_round: int) -> list[int]:
    """Clients of a round, without repetition, in ascending order; a function of (seed, round)."""
    chosen = numpy_rng(seed, "sample clients", round_).choice(clients, size=per_round, replace=False)
    return sorted(chosen.tolist())


def check_step(round_: int, adapter: Row, moments: State, updates: Sequence[Update]) -> None:
    """Make sure that a step may be taken.

    Args:
        round_: Which round it ends.
        adapter: The adapter after it.
        moments: The optimiser's state after it.
        updates: What it was made of.

    Raises:
        Diverged: It is not finite; says whose update was the largest, clients counted from 1.
    """
    if usable(adapter) and finite(moments):
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
    algorithm: Algorithm,
    *,
    of: int | None = None,
    sent: Collection[str] | None = None,
    unsent_gradient: Row | None = None,
    reduce: Reduce = lambda local: local,
) -> tuple[ServerState, RoundReport]:
    """One round of any algorithm.

    Args:
        state: The server's state.
        clients: Who takes part.
        train: Trains clients from the server's adapter.
        algorithm: Its parts.
        of: How many clients there are; None: no more than these.
        sent: Names of the parameters that clients train and send, of those that are shared; None is all of
            them. With none at all, clients do nothing.
        unsent_gradient: A gradient for parameters that are not sent. One that has neither keeps its value,
            its moments and its step count.
        reduce: Where ``train`` gives the updates of a part of the clients: adds those of the others.

    Raises:
        Diverged: No client came back with finite numbers, or the server's own step is not finite.
    """
    shared = algorithm.share(state.adapter.keys())
    trains = algorithm.trains(state.adapter.keys(), state.round)
    names = shared & trains if sent is None else shared & trains & set(sent)
    trained = {name: t for name, t in state.adapter.items() if name in names}
    rest = {name: t for name, t in state.adapter.items() if name not in names}
    kept = algorithm.rule.handed_out(state.rule, names)
    result = Aggregate({}, {}, Collected({}), clip=state.clip, state=state.aggregator)
    if trained:
        updates = train(state.round, clients, trained, rest, kept)
        result = aggregate(trained, updates, algorithm, reduce, state.round, state.clip, state.aggregator)
    if result.pseudo_gradient is None:
        raise Diverged(
            f"round {state.round + 1}: the loss or update of every client is not finite, or too large"
            f"{algorithm.remark_on_rule}"
        )
    came = result.collected
    share = len(came.kept) / (of or len(clients) or 1)
    server_memory, direction = state.rule, result.pseudo_gradient
    if algorithm.rule.amend is not None:
        change = {name: -algorithm.client_lr * g for name, g in direction.items()}
        change, server_memory = algorithm.rule.amend(change, server_memory, share)
        direction = {name: t / -algorithm.client_lr for name, t in change.items()}
    gradient = direction | {n: g for n, g in (unsent_gradient or {}).items() if n in trains}
    adapter, moments = step_some(algorithm.server_optimiser, state.adapter, gradient, state.optimiser)
    check_step(state.round + 1, adapter | result.fold, moments | result.state, came.kept)
    turned = algorithm.refactoring
    if turned is not None and turned.after(state.round):
        adapter = turned.refactor(adapter, state.round)
    rule = algorithm.rule.absorb(server_memory, result.sent, share)
    took_part = list(clients) if trained else []
    # What rests now, and trained in the round before, has changed since; counted as if every client had been
    # there. (Over Flower it is known who was.)
    changed = shared & algorithm.trains(shared, max(state.round - 1, 0)) - trains
    if turned is not None and turned.after(state.round - 1):
        changed |= {name for pair in lora_pairs(shared) for name in pair}
    down = trained | {name: state.adapter[name] for name in changed} | with_prefix(RULE, kept)
    bytes_down = sum(bytes_of(algorithm.sent(down, client)) for client in took_part)
    base = folded(state.base, result.fold)
    # Everybody needs the base, sooner or later.
    bytes_down += bytes_of_fold(base, result.fold) * (of or len(clients))
    bytes_up = came.bytes_up
    if algorithm.privacy is not None:
        bytes_up = algorithm.privacy.per_round * bytes_of(payload_like(algorithm, 0, trained, kept))
        bytes_down = algorithm.privacy.per_round * bytes_of(down)
    report = RoundReport(took_part, came.kept, came.left_out, bytes_up, bytes_down, came.memories)
    after = ServerState(state.round + 1, adapter, moments, rule, base, result.clip, aggregator=result.state)
    return after, report


TrainAll = Callable[[int, AdapterBank, State], tuple[LocalResult, int]]
"""``(round, bank of one row, optimiser state) -> (result, examples used)``."""


def central_round(state: ServerState, train: TrainAll) -> tuple[ServerState, RoundReport]:
    """The baseline without federation: one adapter, AdamW, all data in one place.

    As many steps as `train` takes; moments last from round to round, and nothing crosses a wire.

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
