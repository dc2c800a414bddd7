"""Drive the rounds of a run: the only loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedloom.build import Parts, build, device_name, run_folder, versions
from fedloom.client.local import LocalResult, train_locally
from fedloom.client.optimisers import State
from fedloom.client.work import ClientWork, plan_work
from fedloom.config import FedConfig, UserError
from fedloom.federation.aggregate import ClientUpdate
from fedloom.federation.central import central_round
from fedloom.federation.server import (
    Diverged,
    RoundReport,
    ServerState,
    federated_round,
    initial_state,
    sample_clients,
)
from fedloom.model.bank import AdapterBank, Row
from fedloom.observe.checkpoint import (
    check_same_run,
    latest_checkpoint,
    load_state,
    prepare_run_folder,
    save_checkpoint,
    write_run_config,
)
from fedloom.observe.evaluate import validate
from fedloom.observe.metrics import MetricsLog, read_rows, summary, write_summary
from fedloom.observe.progress import Progress
from fedloom.runtimes.in_process import run_clients

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progressed:
    """Where a run stands between two rounds; all of it goes into a checkpoint.

    Attributes:
        server: The server's state.
        drawn: Batches that each client has drawn so far.
        accuracy: The last validation's; None before the first.
        not_risen: Validations in a row in which accuracy has not risen.
    """

    server: ServerState
    drawn: list[int]
    accuracy: float | None = None
    not_risen: int = 0


def run_fed(config: FedConfig) -> Progressed:
    """`fedloom fed`: from a config to a run's folder.

    Raises:
        UserError: A mistake of the user, or a run whose numbers are no longer finite.
        KeyboardInterrupt: After a checkpoint was left.
    """
    folder = run_folder(config)
    checkpoint = prepare_run_folder(folder, config.resume)
    if config.resume:
        check_same_run(folder, config)
    resolved, parts = build(config)
    write_run_config(folder, resolved, versions(), device_name(parts.model.device))
    return drive(resolved, parts, folder, checkpoint)


def drive(config: FedConfig, parts: Parts, folder: Path, checkpoint: Path | None = None) -> Progressed:
    """Run rounds until there have been `max_steps`, or validation says stop.

    Args:
        config: As `build` returned it.
        parts: What the run is made of.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
    """
    began = time.monotonic()
    now = _start(parts) if checkpoint is None else _restore(checkpoint, parts.model.device)
    rows = [row for row in read_rows(folder) if checkpoint and row["round"] <= now.server.round]
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    with (
        MetricsLog(folder, config.report_to, now.server.round if checkpoint else None) as metrics,
        Progress(config.max_steps, done=now.server.round, bytes_sent=sent) as progress,
    ):
        try:
            if checkpoint is None:
                now, row = _validated(now, parts, {"round": 0})
                metrics.write(row)
            while now.server.round < config.max_steps and not _stops(config, now):
                now, row = _round(config, parts, now)
                if now.server.round % config.val_steps == 0 or now.server.round == config.max_steps:
                    now, row = _validated(now, parts, row)
                metrics.write(row)
                progress.update(row)
                if "val_loss" in row:
                    _save(folder, parts, now)
            if _stops(config, now):
                progress.say(f"stopped: accuracy has not risen in {config.patience} validations")
        except KeyboardInterrupt:
            progress.say(f"interrupted after round {now.server.round}; --resume goes on from there")
            raise
        except Diverged as error:
            _save(folder, parts, now)
            raise UserError(_after_divergence(error, folder)) from error
        finally:
            # Also when interrupted: `now` is always the state after a whole round.
            _save(folder, parts, now)
    write_summary(folder, summary(read_rows(folder), wall_seconds=time.monotonic() - began))
    return now


def _start(parts: Parts) -> Progressed:
    return Progressed(
        server=initial_state(parts.model.initial, parts.server_optimiser), drawn=[0] * len(parts.data.clients)
    )


def _stops(config: FedConfig, now: Progressed) -> bool:
    return 0 < config.patience <= now.not_risen


def _round(config: FedConfig, parts: Parts, now: Progressed) -> tuple[Progressed, dict[str, Any]]:
    """One round: the new standing, and its row of metrics."""
    began = time.perf_counter()
    if config.train_mode == "local":
        clients = [0]
        server, report = central_round(now.server, _CentralTraining(config, parts, now))
    else:
        clients = sample_clients(config.seed, now.server.round, config.client_num, config.client_num_per_step)
        train = _ClientTraining(config, parts, now)
        server, report = federated_round(now.server, clients, train, config.client_lr, parts.server_optimiser)
    drawn = list(now.drawn)
    for client in clients:
        drawn[client] += parts.schedule.batches
    for client in report.left_out:
        log.warning("round %d: client %d left out, its loss or update is not finite", server.round, client)
    row = _row(server.round, report, time.perf_counter() - began)
    return replace(now, server=server, drawn=drawn), row


@dataclass(frozen=True)
class _ClientTraining:
    """`federation.server.Train`: the sampled clients, in this process."""

    config: FedConfig
    parts: Parts
    now: Progressed

    def __call__(self, round_: int, clients: Sequence[int], adapter: Row) -> Iterable[ClientUpdate]:
        work = [_work(self.config, self.parts, self.now, client) for client in clients]
        return run_clients(self.parts.model, adapter, work, self.parts.rules)


@dataclass(frozen=True)
class _CentralTraining:
    """`federation.central.Train`: everything as one client whose optimiser lasts."""

    config: FedConfig
    parts: Parts
    now: Progressed

    def __call__(self, round_: int, bank: AdapterBank, state: State) -> tuple[LocalResult, int]:
        work = _work(self.config, self.parts, self.now, 0)
        return train_locally(self.parts.model, bank, [work.steps], self.parts.rules, state), work.examples


def _work(config: FedConfig, parts: Parts, now: Progressed, client: int) -> ClientWork:
    return plan_work(
        parts.data.train,
        parts.data.clients[client],
        parts.schedule,
        parts.model.layout,
        seed=config.seed,
        client=client,
        round_=now.server.round,
        drawn=now.drawn[client],
    )


def _row(round_: int, report: RoundReport, seconds: float) -> dict[str, Any]:
    examples = sum(update.examples for update in report.updates)
    labels = sum(update.labels for update in report.updates)
    return {
        "round": round_,
        "train_loss": sum(update.loss * update.examples for update in report.updates) / examples,
        "train_accuracy": sum(update.correct for update in report.updates) / labels,
        "clients": report.clients,
        "clients_left_out": report.left_out,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "tokens": sum(update.tokens for update in report.updates),
        "seconds": seconds,
    }


def _validated(now: Progressed, parts: Parts, row: dict[str, Any]) -> tuple[Progressed, dict[str, Any]]:
    """Validate the server's adapter; accuracy that has not risen is counted."""
    began = time.perf_counter()
    result = validate(parts.model, now.server.adapter, parts.data.validation, parts.rules.wave_tokens)
    rose = now.accuracy is None or result.accuracy > now.accuracy
    now = replace(now, accuracy=result.accuracy, not_risen=0 if rose else now.not_risen + 1)
    seconds = time.perf_counter() - began
    return now, row | {"val_loss": result.loss, "val_accuracy": result.accuracy, "eval_seconds": seconds}


def _save(folder: Path, parts: Parts, now: Progressed) -> None:
    """Leave a checkpoint; where there is one of this round already, nothing is done."""
    if now.server.round == 0:
        return
    tensors = {f"adapter.{name}": t for name, t in now.server.adapter.items()}
    tensors |= {f"optimiser.{name}": t for name, t in now.server.optimiser.items()}
    save_checkpoint(
        folder,
        now.server.round,
        write_adapter=lambda path: parts.model.save(now.server.adapter, path),
        tensors=tensors,
        state={
            "round": now.server.round,
            "drawn": now.drawn,
            "accuracy": now.accuracy,
            "not_risen": now.not_risen,
        },
    )


def _restore(checkpoint: Path, device: torch.device) -> Progressed:
    tensors, state = load_state(checkpoint)
    groups: dict[str, Row] = {"adapter": {}, "optimiser": {}}
    for name, t in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = t.to(device)
    return Progressed(
        server=ServerState(state["round"], groups["adapter"], groups["optimiser"]),
        drawn=state["drawn"],
        accuracy=state["accuracy"],
        not_risen=state["not_risen"],
    )


def _after_divergence(error: Diverged, folder: Path) -> str:
    last = latest_checkpoint(folder)
    kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
    return f"{error}; {kept}. Lower client_lr or lr, or set clip_norm, under another exp_name"
