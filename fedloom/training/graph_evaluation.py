"""How good the peers of `fedloom dfl` are after a round; each process judges its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from fedloom.evaluation.answering import answer
from fedloom.evaluation.evaluate import Validation, success_rates, validate_rows
from fedloom.evaluation.remembered import first_validation
from fedloom.model.bank import AdapterBank
from fedloom.training.graph_parts import PeerParts, PeerProgress
from fedloom.training.graph_rounds import evaluated_bank

log = logging.getLogger(__name__)


def evaluated(
    parts: PeerParts, now: PeerProgress, row: dict[str, Any]
) -> tuple[PeerProgress, dict[str, Any]]:
    """Every peer's loss and accuracy; means are over those that do not attack."""
    began = time.perf_counter()
    results = _first(parts, now) if now.peers.round == 0 else _all(parts, now)
    accuracies = [results[peer].accuracy for peer in parts.honest]
    found = {
        "val_loss": _mean(results[peer].loss for peer in parts.honest),
        "val_accuracy": _mean(accuracies),
        "val_accuracy_min": min(accuracies),
        "val_accuracy_max": max(accuracies),
        "peer_val_accuracy": [result.accuracy for result in results],
        "peer_val_loss": [result.loss for result in results],
    }
    if parts.triggered:
        found["backdoor_success"] = _backdoor(parts, now)
    found["eval_seconds"] = row.get("eval_seconds", 0.0) + time.perf_counter() - began
    log.info(
        "round %d: %svalidation accuracy %.4f (%.4f to %.4f), consensus error %.4g",
        row["round"],
        f"train loss {row['train_loss']:.4f}, " if "train_loss" in row else "",
        found["val_accuracy"],
        min(accuracies),
        max(accuracies),
        row.get("consensus_error", 0.0),
    )
    return now, row | found


def _backdoor(parts: PeerParts, now: PeerProgress) -> float:
    """How often an attack succeeds: the mean over honest peers."""
    bank = evaluated_bank(parts, now)
    local = bank.rows([peer - parts.here.start for peer in parts.honest if peer in parts.here])
    found = success_rates(parts.model, local, parts.triggered, parts.rules.wave_tokens, parts.frozen)
    return _mean(rate for process in parts.group.gather(found) for rate in process)


def _all(parts: PeerParts, now: PeerProgress) -> list[Validation]:
    bank, sequences = evaluated_bank(parts, now), parts.validation[parts.here.start : parts.here.stop]
    found = validate_rows(parts.model, bank, sequences, parts.rules.wave_tokens, parts.frozen)
    everyone = parts.group.gather([[result.loss, result.accuracy] for result in found])
    return [Validation(*result) for process in everyone for result in process]


def _first(parts: PeerParts, now: PeerProgress) -> list[Validation]:
    """Before the first round all adapters are the same: each list of sequences is judged once."""
    distinct = {id(sequences_of_one): sequences_of_one for sequences_of_one in parts.validation}
    bank = AdapterBank.repeat(now.peers.bank.row(0), len(distinct))
    sequences = list(distinct.values())
    results = first_validation(
        parts.model, bank, sequences, parts.rules.wave_tokens, parts.frozen, parts.group
    )
    by_list = dict(zip(distinct, results, strict=True))
    return [by_list[id(sequences_of_one)] for sequences_of_one in parts.validation]


def answered(parts: PeerParts, now: PeerProgress, row: dict[str, Any]) -> dict[str, Any]:
    """Let every peer answer some of its validation problems."""
    began = time.perf_counter()
    questions = parts.questions[parts.here.start : parts.here.stop]
    results = answer(parts.model, evaluated_bank(parts, now), parts.tokenizer, questions, frozen=parts.frozen)
    everyone = parts.group.gather([result.accuracy for result in results])
    accuracies = [accuracy for process in everyone for accuracy in process]
    return row | {
        "val_answer_accuracy": _mean(accuracies[peer] for peer in parts.honest),
        "peer_val_answer_accuracy": accuracies,
        "eval_seconds": row.get("eval_seconds", 0.0) + time.perf_counter() - began,
    }


def averaged(parts: PeerParts, now: PeerProgress) -> Validation:
    """How good the mean of the honest peers' adapters is, on the validation data of all."""
    honest = parts.honest
    part = now.peers.bank.rows([peer - parts.here.start for peer in honest if peer in parts.here])
    mean = parts.group.sum({name: t.sum(0) / len(honest) for name, t in part.tensors.items()})
    distinct = list({id(part): part for part in parts.validation}.values())
    sequences = [tokens for part in distinct for tokens in part]
    bank, wave_tokens = AdapterBank.repeat(mean, 1), parts.rules.wave_tokens
    return validate_rows(parts.model, bank, [sequences], wave_tokens, parts.frozen, parts.group)[0]


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
