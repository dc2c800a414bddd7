"""Drive the rounds of a run: the only loop."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedloom.build import Parts, build, device_name, run_folder, versions
from fedloom.config import FedConfig, UserError
from fedloom.federation.server import Diverged, ServerState, initial_state
from fedloom.model.bank import Row
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
from fedloom.rounds import Progressed, play_round


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
                now, row = play_round(config, parts, now)
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
