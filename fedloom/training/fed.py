"""A run with a server, or of the baseline without federation: what the loop over rounds must know of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedloom.evaluation.answering import answer_accuracy
from fedloom.evaluation.evaluate import success_rates, validate_rows
from fedloom.evaluation.reference import kept_in, with_references
from fedloom.evaluation.remembered import first_validation
from fedloom.federation.algorithm import PERSONAL, part_of, with_prefix
from fedloom.federation.attacks import summary_of
from fedloom.federation.server import ServerState, initial_state
from fedloom.model.bank import AdapterBank, Row
from fedloom.runs.checkpoint import (
    are_counts,
    check_state,
    damaged_checkpoint,
    load_state,
    save_checkpoint,
)
from fedloom.runs.contents import is_number
from fedloom.runs.run_folder import write_clients
from fedloom.training import loop
from fedloom.training.fed_rounds import ServerProgress, play_round
from fedloom.training.loop import Intervals, RunSteps
from fedloom.training.lost_rounds import asks_for, with_lost
from fedloom.training.private import ExampleBudget, secret_key
from fedloom.training.setup_fed import Parts
from fedloom.training.standstill import warn_of_standstill


def write_client_counts(folder: Path, parts: Parts) -> None:
    """Write down who holds what."""
    data = parts.data
    write_clients(folder, data.train, data.clients, [data.validation], server=len(data.server))


Play = Callable[[Parts, ServerProgress], tuple[ServerProgress, dict[str, Any]]]
"""A round: ``(parts, progress) -> (new progress, its row of metrics)``."""


def drive(
    parts: Parts,
    intervals: Intervals,
    folder: Path,
    checkpoint: Path | None = None,
    play: Play | None = None,
) -> ServerProgress:
    """Run rounds until there have been enough, or validation says stop.

    Args:
        parts: What the run is made of.
        intervals: How many rounds, and what happens how often.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
        play: Plays a round; None: with clients in this run's processes.
    """
    looked_at = parts.data.validation[: parts.val_limit]
    train, looked_at = with_references(
        parts.model, [parts.data.train, looked_at], parts.rules.wave_tokens, parts.group, kept_in(folder)
    )
    parts = replace(parts, data=replace(parts.data, train=train, validation=looked_at))
    if parts.budget is not None:
        parts = _in_secret(parts, folder, checkpoint)
    run_steps = RunSteps(
        start=partial(first_progress, parts),
        restore=partial(_restore, parts),
        rounds_done=lambda now: now.server.round,
        play=partial(_played, parts, _asking(play, parts, folder) if play else play_round, intervals.rounds),
        validate=partial(_validated, parts),
        answer=partial(_answered, parts),
        stops=partial(_reason_to_stop, parts, intervals.rounds),
        save=partial(_save, parts),
        saves_alone=True,
        at_end=lambda now: summary_of(parts.attackers),
        advice="Lower client_lr or lr, or set clip_norm, under another exp_name",
    )
    return loop.drive(run_steps, intervals, folder, checkpoint, parts.group)


def first_progress(parts: Parts) -> ServerProgress:
    """Where a run begins."""
    clients = len(parts.data.clients)
    server = initial_state(parts.model.initial, parts.algorithm, clients)
    return ServerProgress(server, [0] * clients)


def _asking(play: Play, parts: Parts, folder: Path) -> Play:
    """Of clients that hide their examples from the server, who is asked may spend, whatever comes of it."""
    if not isinstance(parts.budget, ExampleBudget) or parts.budget.seed is not None:
        return play

    def ask(parts: Parts, now: ServerProgress) -> tuple[ServerProgress, dict[str, Any]]:
        asks_for(folder, now.server.round + 1)
        return play(parts, now)

    return ask


def _in_secret(parts: Parts, folder: Path, checkpoint: Path | None) -> Parts:
    """The parts with the key of this start and the rounds lost before it, the same on all ranks."""
    assert parts.budget is not None
    budget = with_lost(parts.budget, folder, checkpoint, parts.group)
    privacy, group = parts.algorithm.privacy, parts.group
    if privacy is None:  # clients have keys of their own
        return replace(parts, budget=budget)
    key = group.share(secret_key()) if budget.seed is None else budget.seed
    return replace(
        parts, budget=budget, algorithm=replace(parts.algorithm, privacy=replace(privacy, key=key))
    )


def _played(
    parts: Parts, play: Play, rounds: int, now: ServerProgress
) -> tuple[ServerProgress, dict[str, Any]]:
    after, row = play(parts, now)
    if now.server.round == 0 and parts.server_sgd and parts.group.rank == 0:
        warn_of_standstill(
            parts, now.server.adapter, after.server.adapter, rounds, row.get("train_loss", 0.0)
        )
    if parts.algorithm.privacy is not None:
        row = row | {"clip": now.server.clip}
    return after, row if parts.budget is None else parts.budget.row(row, after.drawn)


def _reason_to_stop(parts: Parts, rounds: int, now: ServerProgress) -> str | None:
    if 0 < parts.patience <= now.validations_without_gain:
        return f"accuracy has not risen in {parts.patience} validations"
    if parts.budget is None or now.server.round >= rounds:
        return None
    return parts.budget.reason_to_stop(now.server.round, now.drawn)


def _validated(
    parts: Parts, now: ServerProgress, row: dict[str, Any]
) -> tuple[ServerProgress, dict[str, Any]]:
    """Validate the server's adapter, and the clients' own where they have some.

    Accuracy that has not risen is counted: the clients' own, where they have personal parameters.
    """
    began = time.perf_counter()
    parts.model.fold(now.server.base)
    bank, sequences = AdapterBank.repeat(now.server.adapter, 1), [parts.data.validation]
    look = first_validation if now.server.round == 0 else validate_rows
    (result,) = look(parts.model, bank, sequences, parts.rules.wave_tokens, group=parts.group)
    found: dict[str, Any] = {"val_loss": result.loss, "val_accuracy": result.accuracy}
    if parts.budget is not None and now.server.round == 0:
        found |= {n: v for n, v in parts.budget.row({"round": 0}, now.drawn).items() if n != "round"}
    accuracy = result.accuracy
    if personal := _personal_rows(now):
        found |= _personal_validation(parts, now, personal)
        accuracy = found["personal_val_accuracy"]
    if parts.data.triggered:
        bank = AdapterBank.repeat(now.server.adapter, 1)
        (found["backdoor_success"],) = success_rates(
            parts.model, bank, parts.data.triggered, parts.rules.wave_tokens, group=parts.group
        )
    rose = now.accuracy is None or accuracy > now.accuracy
    now = replace(
        now, accuracy=accuracy, validations_without_gain=0 if rose else now.validations_without_gain + 1
    )
    return now, row | found | {"eval_seconds": time.perf_counter() - began}


def _personal_rows(now: ServerProgress) -> dict[int, Row]:
    """The clients' own adapters, by client, where they have personal parameters and have trained."""
    personal = {client: part_of(memory, PERSONAL) for client, memory in now.memories.items()}
    return {client: now.server.adapter | row for client, row in sorted(personal.items()) if row}


def _personal_validation(parts: Parts, now: ServerProgress, rows: dict[int, Row]) -> dict[str, float]:
    """The means over the clients that have trained of what each one's own adapter comes to."""
    algorithm, personal = parts.algorithm, part_of(parts.first_memory, PERSONAL)
    bank = AdapterBank.stack([{name: row[name] for name in personal} for row in rows.values()])
    shared = {name: t for name, t in now.server.adapter.items() if name not in personal}
    results = validate_rows(
        parts.model,
        bank,
        [parts.data.validation] * len(rows),
        parts.rules.wave_tokens,
        shared,
        parts.group,
        ranks=[algorithm.ranks.clients[client] for client in rows] if algorithm.ranks else None,
    )
    return {
        "personal_val_loss": sum(each.loss for each in results) / len(results),
        "personal_val_accuracy": sum(each.accuracy for each in results) / len(results),
    }


def _answered(parts: Parts, now: ServerProgress, row: dict[str, Any]) -> dict[str, Any]:
    """Let the server's adapter answer some validation problems."""
    began = time.perf_counter()
    parts.model.fold(now.server.base)
    assert parts.data.questions is not None
    right = answer_accuracy(
        parts.model, now.server.adapter, parts.tokenizer, parts.data.questions, parts.group
    )
    seconds = row.get("eval_seconds", 0.0) + time.perf_counter() - began
    return row | {"val_answer_accuracy": right, "eval_seconds": seconds}


def _save(parts: Parts, folder: Path, now: ServerProgress) -> None:
    """Leave a checkpoint; where there is one of this round already, nothing is done."""
    if now.server.round == 0 or parts.group.rank != 0:
        return

    def write_adapters(path: Path) -> None:
        parts.model.save(now.server.adapter, path, base=now.server.base)
        parts.beside.write(path)
        for client, row in _personal_rows(now).items():
            rank = parts.algorithm.rank(client)
            of_client = path / f"client-{client + 1:04d}"
            parts.model.save(row, of_client, rank=rank, base=now.server.base)
            parts.beside.write(of_client, like=path)

    save_checkpoint(
        folder,
        now.server.round,
        write_adapter=write_adapters,
        tensors=_tensors(now),
        state={
            "round": now.server.round,
            "drawn": now.drawn,
            "remembering": sorted(now.memories),
            "taken": {str(client): word for client, word in now.taken.items()},
            "clip": now.server.clip if math.isfinite(now.server.clip) else None,
            "selected_layers": now.server.selected,
            "accuracy": now.accuracy,
            "validations_without_gain": now.validations_without_gain,
        },
    )


def _tensors(now: ServerProgress) -> Row:
    server = now.server
    tensors = with_prefix("adapter.", server.adapter) | with_prefix("optimiser.", server.optimiser)
    tensors |= with_prefix("rule.", server.rule) | with_prefix("base.", server.base)
    tensors |= with_prefix("aggregator.", server.aggregator)
    for client, memory in now.memories.items():
        tensors |= with_prefix(f"client-{client + 1:04d}.", memory)
    return tensors


def _restore(parts: Parts, checkpoint: Path) -> ServerProgress:
    """The progress that a checkpoint holds.

    Raises:
        Damaged: It is not one of this run.
    """
    tensors, state = load_state(checkpoint)
    new = first_progress(parts)
    remembering = state.get("remembering", [])
    taken, known = state.get("taken", {}), range(len(new.drawn))
    selected, layers = state.get("selected_layers"), parts.focus.layers if parts.focus else {}
    if not (
        are_counts(state.get("drawn"), len(new.drawn))
        and are_counts([state.get("validations_without_gain")], 1)
        and isinstance(state.get("accuracy", ""), float | None)
        and (state.get("clip") is None or (is_number(state["clip"]) and state["clip"] > 0))
        and (
            selected is None
            or (isinstance(selected, list) and all(type(n) is int and n in layers for n in selected))
        )
        and isinstance(remembering, list)
        and all(type(client) is int and client in known for client in remembering)
        and isinstance(taken, dict)
        and all(client.isdecimal() and isinstance(word, str) for client, word in taken.items())
    ):
        raise damaged_checkpoint(checkpoint, "state.json", "a count or the accuracy is not one")
    new = replace(new, memories=dict.fromkeys(remembering, parts.first_memory))
    expected = _tensors(new)
    check_state(checkpoint, tensors, expected)
    # In their own order, not the file's: a norm over all parameters is rounded by it.
    on_device = {name: tensors[name].to(parts.model.device) for name in expected}
    server = ServerState(
        state["round"],
        part_of(on_device, "adapter."),
        part_of(on_device, "optimiser."),
        part_of(on_device, "rule."),
        part_of(on_device, "base."),
        math.inf if state.get("clip") is None else float(state["clip"]),
        None if selected is None else tuple(selected),
        part_of(on_device, "aggregator."),
    )
    memories = {client: part_of(on_device, f"client-{client + 1:04d}.") for client in remembering}
    words = {int(client): word for client, word in taken.items()}
    return ServerProgress(
        server, state["drawn"], state["accuracy"], state["validations_without_gain"], memories, words
    )
