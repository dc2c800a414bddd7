"""One round of `fedloom dfl`: what the peers do, and what the round says of itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import Optimiser
from fedloom.client.work import ClientWork, Schedule, plan_work
from fedloom.data.encode import Tokens
from fedloom.federation.consensus import consensus
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.peers import PeerReport, PeerState, Trained, peer_round
from fedloom.federation.server import Diverged
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.observe.answering import Questions, answer
from fedloom.observe.evaluate import Validation, validate_rows
from fedloom.runtimes.in_process import train_peers

log = logging.getLogger(__name__)

Mixing = Callable[[int], RoundMixing]
"""``round -> its mixing matrix, and who takes part``."""


@dataclass(frozen=True)
class PeerParts:
    """What a run without a server is made of.

    Attributes:
        model: The frozen base with stacked adapters.
        tokenizer: The model's.
        train: All training sequences.
        peers: For each peer the indices of its own.
        validation: For each peer what it is judged by; one list for all may stand there many times.
        questions: For each peer the problems that it answers itself; none where nobody is asked.
        schedules: How much each peer does in a round.
        rules: How peers train.
        optimiser: The same as in the rules; its state lasts across rounds.
        used: Adapter parameters that nobody trains: A, with DFL-LoRA.
        own: Names of parameters that are not averaged: the head, where it stays with its peer.
        modules: PEFT's names of the modules with LoRA.
        mixing: The graph, round by round.
        judged: Which adapters of a round are evaluated: those after mixing, or those before it.
        seed: The run's.
    """

    model: StackedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Tokens]
    peers: Sequence[np.ndarray]
    validation: Sequence[Sequence[Tokens]]
    questions: Sequence[Questions]
    schedules: Sequence[Schedule]
    rules: LocalRules
    optimiser: Optimiser
    used: Row
    own: frozenset[str]
    modules: Sequence[str]
    mixing: Mixing
    judged: Literal["after", "before"]
    seed: int


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two rounds; all but `before_mixing` goes into a checkpoint.

    Attributes:
        peers: The peers' state.
        drawn: Batches that each peer has drawn so far.
        before_mixing: The bank of the last round before it was mixed, where that is what is judged.
    """

    peers: PeerState
    drawn: list[int]
    before_mixing: AdapterBank | None = None


def start(parts: PeerParts) -> Standing:
    """Everybody's first adapter: the same A, B and head."""
    row = {name: t for name, t in parts.model.initial.items() if name not in parts.used}
    bank = AdapterBank.repeat(row, len(parts.peers))
    return Standing(PeerState(0, bank, parts.optimiser.init(bank)), [0] * len(parts.peers))


def play_round(parts: PeerParts, now: Standing) -> tuple[Standing, dict[str, Any]]:
    """One round: the new standing, and its row of metrics.

    Raises:
        Diverged: The numbers of every peer that trained are not finite.
    """
    began = time.perf_counter()

    def train(state: PeerState, who: Bool[Tensor, " peers"]) -> Trained:
        return train_peers(parts.model, state, _work(parts, now, who), parts.rules, parts.used)

    mixed = now.peers.bank.tensors.keys() - parts.own
    peers, report = peer_round(now.peers, train, parts.mixing(now.peers.round), mixed)
    for peer in report.left_out:
        log.warning(
            "round %d: peer %d goes on from where it was, its loss or update is not finite",
            peers.round,
            peer + 1,
        )
    if report.left_out and len(report.left_out) == int(report.active.sum()):
        raise Diverged(f"round {peers.round}: the loss or update of every peer is not finite")
    drawn = [
        count + (schedule.batches if takes_part else 0)
        for count, schedule, takes_part in zip(
            now.drawn, parts.schedules, report.active.tolist(), strict=True
        )
    ]
    row = _row(peers.round, report) | {"seconds": time.perf_counter() - began}
    after = Standing(peers, drawn, report.trained.bank if parts.judged == "before" else None)
    return after, row | _apart(parts, after)


def _work(parts: PeerParts, now: Standing, who: Bool[Tensor, " peers"]) -> Iterator[ClientWork]:
    for peer in who.nonzero()[:, 0].tolist():
        yield plan_work(
            parts.train,
            parts.peers[peer],
            parts.schedules[peer],
            parts.model.layout,
            seed=parts.seed,
            client=peer,
            round_=now.peers.round,
            drawn=now.drawn[peer],
        )


def _row(round_: int, report: PeerReport) -> dict[str, Any]:
    trained = report.trained
    seen = ~trained.loss.isnan()
    labels = int(trained.labels.sum())
    return {
        "round": round_,
        "train_loss": float(trained.loss[seen].mean()) if bool(seen.any()) else math.nan,
        "train_accuracy": int(trained.correct.sum()) / labels if labels else math.nan,
        "peer_train_loss": trained.loss.tolist(),
        "peers_out": (~report.active).nonzero()[:, 0].tolist(),
        "peers_left_out": report.left_out,
        # What one sends another receives.
        "bytes_up": report.bytes_sent,
        "bytes_down": report.bytes_sent,
        "tokens": int(trained.tokens.sum()),
    }


def _apart(parts: PeerParts, now: Standing) -> dict[str, Any]:
    """How far the peers are apart."""
    began = time.perf_counter()
    apart = consensus(_judged(parts, now), parts.used, parts.modules)
    return {
        "consensus_error": apart.error,
        "consensus_error_relative": apart.relative,
        "eval_seconds": time.perf_counter() - began,
    }


def _judged(parts: PeerParts, now: Standing) -> AdapterBank:
    if parts.judged == "before" and now.before_mixing is not None:
        return now.before_mixing
    return now.peers.bank


def evaluated(parts: PeerParts, now: Standing, row: dict[str, Any]) -> tuple[Standing, dict[str, Any]]:
    """Every peer's loss and accuracy."""
    began = time.perf_counter()
    results = _first(parts, now) if now.peers.round == 0 else _all(parts, now)
    accuracies = [result.accuracy for result in results]
    found = {
        "val_loss": _mean(result.loss for result in results),
        "val_accuracy": _mean(accuracies),
        "val_accuracy_min": min(accuracies),
        "val_accuracy_max": max(accuracies),
        "peer_val_accuracy": accuracies,
        "peer_val_loss": [result.loss for result in results],
        "eval_seconds": row.get("eval_seconds", 0.0) + time.perf_counter() - began,
    }
    log.info(
        "round %d: train loss %.4f, validation accuracy %.4f (%.4f to %.4f), consensus error %.4g",
        row["round"],
        row.get("train_loss", math.nan),
        found["val_accuracy"],
        min(accuracies),
        max(accuracies),
        row.get("consensus_error", 0.0),
    )
    return now, row | found


def _all(parts: PeerParts, now: Standing) -> list[Validation]:
    bank = _judged(parts, now)
    return validate_rows(parts.model, bank, parts.validation, parts.rules.wave_tokens, parts.used)


def _first(parts: PeerParts, now: Standing) -> list[Validation]:
    """Before the first round all adapters are the same: each list of sequences is judged once."""
    distinct = {id(own): own for own in parts.validation}
    bank = AdapterBank.repeat(now.peers.bank.row(0), len(distinct))
    sequences = list(distinct.values())
    results = validate_rows(parts.model, bank, sequences, parts.rules.wave_tokens, parts.used)
    by_list = dict(zip(distinct, results, strict=True))
    return [by_list[id(own)] for own in parts.validation]


def answered(parts: PeerParts, now: Standing, row: dict[str, Any]) -> dict[str, Any]:
    """Let every peer answer some of its validation problems."""
    began = time.perf_counter()
    results = answer(parts.model, _judged(parts, now), parts.tokenizer, parts.questions, used=parts.used)
    accuracies = [result.accuracy for result in results]
    return row | {
        "val_answer_accuracy": _mean(accuracies),
        "peer_val_answer_accuracy": accuracies,
        "eval_seconds": row.get("eval_seconds", 0.0) + time.perf_counter() - began,
    }


def averaged(parts: PeerParts, now: Standing) -> Validation:
    """How good the mean of all peers' adapters is, on the validation data of all."""
    bank = now.peers.bank
    mean = bank.mean(torch.ones(bank.clients, dtype=torch.float64, device=bank.device))
    distinct = list({id(own): own for own in parts.validation}.values())
    sequences = [tokens for own in distinct for tokens in own]
    return validate_rows(
        parts.model, AdapterBank.repeat(mean, 1), [sequences], parts.rules.wave_tokens, parts.used
    )[0]


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every)
