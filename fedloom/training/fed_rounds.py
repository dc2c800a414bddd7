"""One round of each `train_mode`: what is trained, by whom, and what the round says of itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedloom.client.local import LocalResult, step_gradients, train_locally
from fedloom.client.optimisers import State
from fedloom.client.work import ClientWork, plan_work
from fedloom.federation.focus import FocusReport, focused_round
from fedloom.federation.server import RoundReport, ServerState, central_round, federated_round, sample_clients
from fedloom.federation.transport import ClientTransport
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, Row
from fedloom.runtimes.attacked import attacked_updates
from fedloom.runtimes.dealing import share_of, share_of_step
from fedloom.runtimes.gathering import collect_over_ranks, sum_of_gradients
from fedloom.runtimes.group import moved_since
from fedloom.runtimes.in_process import run_clients
from fedloom.training.setup_fed import Parts

log = logging.getLogger(__name__)

_SERVER = -1  # draws from its own data as if it were a client of this number


@dataclass(frozen=True)
class ServerProgress:
    """Where a run stands between two rounds; all of it goes into a checkpoint.

    Attributes:
        server: The server's state.
        drawn: Batches that each client has drawn so far.
        accuracy: The last validation's; None before the first.
        validations_without_gain: Validations in a row in which accuracy has not risen.
        memories: What clients remember, by client, of those that do and live in this run's processes.
        taken: Of clients elsewhere, by client, the word of the last answer that counted; they remember by it.
    """

    server: ServerState
    drawn: list[int]
    accuracy: float | None = None
    validations_without_gain: int = 0
    memories: dict[int, Row] = field(default_factory=dict)
    taken: dict[int, str] = field(default_factory=dict)


def play_round(
    parts: Parts, now: ServerProgress, transport: ClientTransport | None = None
) -> tuple[ServerProgress, dict[str, Any]]:
    """One round: the new progress, and its row of metrics.

    Args:
        parts: What the run is made of.
        now: The progress before the round.
        transport: How clients are reached; None: they are in this run's processes.

    Raises:
        Diverged: Nothing finite came of it.
    """
    began = time.perf_counter()
    sent = parts.group.sent
    parts.model.fold(now.server.base)
    server, report, focus = _round(parts, now, transport or _in_these_processes(parts, now))
    # Ranks on unlike processors may round the server's step differently: rank 0's counts.
    copied = parts.group.copy(server.adapter | server.base)
    base = {module: copied[module] for module in server.base}
    server = replace(server, adapter={name: copied[name] for name in server.adapter}, base=base)
    drawn = list(now.drawn)
    for client in [0] if parts.central else report.clients:
        drawn[client] += parts.schedule.batches
    for client in report.left_out:
        log.warning(
            "round %d: client %d left out, its loss or update is not finite, or too large%s",
            server.round,
            client + 1,
            parts.algorithm.remark_on_rule,
        )
    row = _row(server.round, report) | _focus_row(focus) | moved_since(parts.group, sent)
    if parts.attackers is not None:
        row |= {"attackers": len(parts.attackers.clients.intersection(report.clients))}
    row |= {"seconds": time.perf_counter() - began}
    memories = now.memories | report.memories
    return replace(now, server=server, drawn=drawn, memories=memories), row


def _in_these_processes(parts: Parts, now: ServerProgress) -> ClientTransport:
    return ClientTransport(
        range(len(parts.data.clients)), ClientTraining(parts, now), partial(collect_over_ranks, parts.group)
    )


def _round(
    parts: Parts, now: ServerProgress, transport: ClientTransport
) -> tuple[ServerState, RoundReport, FocusReport | None]:
    if parts.central:
        return *central_round(now.server, _CentralTraining(parts, now)), None
    there, everybody = transport.clients, len(parts.data.clients)
    if (privacy := parts.algorithm.privacy) is not None:
        present = set(there)
        clients = [client for client in privacy.sample(now.server.round) if client in present]
    else:
        wanted = min(parts.per_round, len(there))
        clients = [there[i] for i in sample_clients(parts.seed, now.server.round, len(there), wanted)]
    train, reduce = transport.train, transport.reduce
    if parts.focus is None:
        done = federated_round(now.server, clients, train, parts.algorithm, of=everybody, reduce=reduce)
        return *done, None
    gradient = _ServerTraining(parts)
    return focused_round(
        now.server, clients, train, gradient, parts.focus, parts.algorithm, everybody, reduce
    )


@dataclass(frozen=True)
class ClientTraining:
    """`federation.transport.Train`: this process's share of the sampled clients."""

    parts: Parts
    now: ServerProgress

    def __call__(
        self, round_: int, clients: Sequence[int], trained: Row, frozen: Row, received: Row
    ) -> Iterable[Update]:
        """See `federation.transport.Train`."""
        work = [client_work(self.parts, self.now, client) for client in clients]
        parts, group = self.parts, self.parts.group
        share = share_of(work, parts.model.layout, group.rank, group.size)

        def run(work: Sequence[ClientWork], change: Callable[[int, Row], Row]) -> Iterator[Update]:
            return run_clients(
                parts.model,
                trained,
                work,
                parts.rules,
                parts.algorithm,
                frozen=frozen,
                received=received,
                memories=self.now.memories,
                first=parts.first_memory,
                seed=parts.seed,
                round_=round_,
                change=change,
                clip=self.now.server.clip,
            )

        if parts.attackers is None:
            return run(share, lambda client, delta: delta)
        return attacked_updates(run, share, clients, parts.attackers, trained, round_, group.sum)


@dataclass(frozen=True)
class _ServerTraining:
    """`federation.focus.ServerGradient`: the mean over the server's next batches, without dropout.

    Each process takes a share of the batches: none waits for the server.
    """

    parts: Parts

    def __call__(self, round_: int, adapter: Row) -> tuple[Row, float]:
        schedule, parts = self.parts.server_schedule, self.parts
        work = plan_work(
            parts.data.train,
            parts.data.server,
            schedule,
            parts.model.layout,
            seed=parts.seed,
            client=_SERVER,
            round_=round_,
            drawn=round_ * schedule.batches,
        )
        bank, rules = AdapterBank.repeat(adapter, 1), replace(parts.rules, dropout_seed=None)
        (step,) = work.steps
        share = share_of_step(step, parts.model.layout, parts.group.rank, parts.group.size)
        gradient, report = step_gradients(parts.model, bank, [share], rules)
        return sum_of_gradients(parts.group, gradient.row(0), float(report.loss[0]))


@dataclass(frozen=True)
class _CentralTraining:
    """`federation.server.TrainAll`: everything as one client whose optimiser lasts."""

    parts: Parts
    now: ServerProgress

    def __call__(self, round_: int, bank: AdapterBank, state: State) -> tuple[LocalResult, int]:
        work = client_work(self.parts, self.now, 0)
        return train_locally(self.parts.model, bank, [work.steps], self.parts.rules, state), work.examples


def client_work(parts: Parts, now: ServerProgress, client: int) -> ClientWork:
    """What a client does in the next round."""
    return plan_work(
        parts.data.train,
        parts.data.clients[client],
        parts.schedule,
        parts.model.layout,
        seed=parts.seed,
        client=client,
        round_=now.server.round,
        drawn=now.drawn[client],
        privacy=parts.rules.privacy,
    )


def _row(round_: int, report: RoundReport) -> dict[str, Any]:
    examples = sum(update.examples for update in report.updates)
    labels = sum(update.labels for update in report.updates)
    loss = sum(update.loss * update.examples for update in report.updates)
    return {
        "round": round_,
        # Where no layer is selected, no client trains.
        "train_loss": loss / examples if examples else math.nan,
        "train_accuracy": sum(update.correct for update in report.updates) / labels if labels else math.nan,
        "clients": report.clients,
        "clients_left_out": report.left_out,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "tokens": sum(update.tokens for update in report.updates),
    }


def _focus_row(focus: FocusReport | None) -> dict[str, Any]:
    if focus is None:
        return {}
    row: dict[str, Any] = {"selected_layers": list(focus.selected)}
    if focus.scores:
        by_number = [focus.scores.get(layer, math.nan) for layer in range(max(focus.scores) + 1)]
        row |= {"layer_scores": by_number, "server_loss": focus.loss}
    return row
