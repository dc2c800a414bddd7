"""How good the peers of `fedloom dfl` are after a round; each process judges its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from fedloom.evaluation.answering import answer
from fedloom.evaluation.evaluate import Validation, success_rates, validate_rows
from fedloom.evaluation.remembered import first_validation
from fedloom.federation.consensus import mean_adapter
from fedloom.model.bank import AdapterBank
from fedloom.training.graph_parts import PeerParts, PeerProgress
from fedloom.training.graph_rounds import evaluated_bank

log = logging.getLogger(__name__)


def evaluated(
    parts: PeerParts, now: PeerProgress, row: dict[str, Any]
) -> tuple[PeerProgress, dict[str, Any]]:
    """Loss and accuracy of every peer that is evaluated; means are over those that do not attack."""
    began = time.perf_counter()
    results = _first(parts, now) if now.peers.round == 0 else _all(parts, now)
    by_peer = dict(zip(parts.shown, results, strict=True))
    honest = [by_peer[peer] for peer in _honest(parts)]
    accuracies = [result.accuracy for result in honest]
    found = {
        "val_loss": _mean(result.loss for result in honest),
        "val_accuracy": _mean(accuracies),
        "val_accuracy_min": min(accuracies),
        "val_accuracy_max": max(accuracies),
        "peer_val_accuracy": [result.accuracy for result in results],
        "peer_val_loss": [result.loss for result in results],
    } | ({} if parts.sample is None else {"evaluated_peers": list(parts.shown)})
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
    honest = set(_honest(parts))
    local = _rows(parts, now, [peer for peer in parts.shown_local if peer in honest])
    found = success_rates(parts.model, local, parts.triggered, parts.rules.wave_tokens, parts.frozen)
    return _mean(rate for process in parts.group.gather(found) for rate in process)


def _all(parts: PeerParts, now: PeerProgress) -> list[Validation]:
    peers = parts.shown_local
    bank, sequences = _rows(parts, now, peers), [parts.validation[peer] for peer in peers]
    found = validate_rows(parts.model, bank, sequences, parts.rules.wave_tokens, parts.frozen)
    everyone = parts.group.gather([[result.loss, result.accuracy] for result in found])
    return [Validation(*result) for process in everyone for result in process]


def _honest(parts: PeerParts) -> list[int]:
    """The evaluated peers that do not attack."""
    return sorted(set(parts.shown) & set(parts.honest))


def _rows(parts: PeerParts, now: PeerProgress, peers: Sequence[int]) -> AdapterBank:
    """What some peers of this process are judged by; where it is all of them, without a copy."""
    bank = evaluated_bank(parts, now)
    return bank if len(peers) == bank.clients else bank.rows([peer - parts.local.start for peer in peers])


def _first(parts: PeerParts, now: PeerProgress) -> list[Validation]:
    """Before the first round all adapters are the same: each list of sequences is judged once."""
    every = [parts.validation[peer] for peer in parts.shown]
    distinct = {id(sequences_of_one): sequences_of_one for sequences_of_one in every}
    bank = AdapterBank.repeat(now.peers.bank.row(0), len(distinct))
    sequences = list(distinct.values())
    results = first_validation(
        parts.model, bank, sequences, parts.rules.wave_tokens, parts.frozen, parts.group
    )
    by_list = dict(zip(distinct, results, strict=True))
    return [by_list[id(sequences_of_one)] for sequences_of_one in every]


def answered(parts: PeerParts, now: PeerProgress, row: dict[str, Any]) -> dict[str, Any]:
    """Let every peer answer some of its validation problems."""
    began = time.perf_counter()
    peers = parts.shown_local
    bank, questions = _rows(parts, now, peers), [parts.questions[peer] for peer in peers]
    results = answer(parts.model, bank, parts.tokenizer, questions, frozen=parts.frozen)
    everyone = parts.group.gather([result.accuracy for result in results])
    accuracies = [accuracy for process in everyone for accuracy in process]
    by_peer = dict(zip(parts.shown, accuracies, strict=True))
    return row | {
        "val_answer_accuracy": _mean(by_peer[peer] for peer in _honest(parts)),
        "peer_val_answer_accuracy": accuracies,
        "eval_seconds": row.get("eval_seconds", 0.0) + time.perf_counter() - began,
    }


def averaged(parts: PeerParts, now: PeerProgress) -> Validation:
    """How good the mean of the honest peers' adapters is, on the validation data of all.

    With FedEx-LoRA it is of products, not of factors; see `consensus.mean_adapter`.
    """
    honest, part = parts.honest, now.peers.bank
    if len(honest) < len(parts.peers):
        part = part.rows([peer - parts.local.start for peer in honest if peer in parts.local])
    mean = mean_adapter(part, len(honest), parts.group.sum)
    distinct = list({id(part): part for part in parts.validation}.values())
    sequences = [tokens for part in distinct for tokens in part]
    bank, wave_tokens = AdapterBank.repeat(mean, 1), parts.rules.wave_tokens
    return validate_rows(parts.model, bank, [sequences], wave_tokens, parts.frozen, parts.group)[0]


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
