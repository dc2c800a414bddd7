"""One round of `fedloom dfl`: what the peers do, and what the round says of itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import Optimiser
from fedloom.client.work import Schedule, plan_work
from fedloom.data.encode import Tokens
from fedloom.evaluation.answering import Questions
from fedloom.evaluation.reference import with_references
from fedloom.federation.algorithm import SENT, Algorithm, first_peer_memory, payload_like
from fedloom.federation.choco import Estimates
from fedloom.federation.consensus import consensus
from fedloom.federation.matrix import RoundMixing
from fedloom.federation.peers import PeerReport, PeerState, Trained, peer_round
from fedloom.federation.server import Diverged
from fedloom.federation.transport import PeerTransport
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.dealing import blocks
from fedloom.runtimes.gathering import payloads_heard, rows_heard
from fedloom.runtimes.group import ALONE, Group, moved_since
from fedloom.runtimes.in_process import train_peers
from fedloom.training.adapter_folder import AdapterFolder

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
        algorithm: What of its parts is neighbours': the aggregator, and how rows are encoded.
        rules: How peers train.
        optimiser: The same as in the rules; its state lasts across rounds.
        frozen: Adapter parameters that nobody trains: A, with DFL-LoRA.
        own: Names of parameters that are not sent: the head, where it stays with its peer, and what the
            algorithm does not share.
        modules: PEFT's names of the modules with LoRA.
        mixing: The graph, round by round.
        judged: Which adapters of a round are evaluated: those after mixing, or those before it.
        seed: The run's.
        group: The processes that the peers are dealt over.
        first: Number of the first peer in these lists, from 0: of a real peer, which knows no other, its own.
        reading: A short name of how texts become token ids and classes, the same for all who train together.
        beside: What is written beside every saved adapter.
    """

    model: StackedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Tokens]
    peers: Sequence[np.ndarray]
    validation: Sequence[Sequence[Tokens]]
    questions: Sequence[Questions]
    schedules: Sequence[Schedule]
    algorithm: Algorithm
    rules: LocalRules
    optimiser: Optimiser
    frozen: Row
    own: frozenset[str]
    modules: Sequence[str]
    mixing: Mixing
    judged: Literal["after", "before"]
    seed: int
    group: Group = ALONE
    first: int = 0
    reading: str = ""
    beside: AdapterFolder | None = None

    @cached_property
    def first_memory(self) -> Row:
        """What a peer keeps for its rule before the first round."""
        return first_peer_memory(self.algorithm, self._shared)

    @property
    def sent(self) -> Row:
        """What a peer sends of the first adapter, which all begin with, and of its first memory."""
        return self._shared | {name: t for name, t in self.first_memory.items() if name.startswith(SENT)}

    @property
    def _shared(self) -> Row:
        names = self.model.initial.keys() - self.frozen.keys() - self.own
        return {name: t for name, t in self.model.initial.items() if name in names}

    @cached_property
    def blocks(self) -> list[range]:
        """The peers of each process, by the tokens of a round."""
        return blocks([self._tokens(peer) for peer in range(len(self.peers))], self.group.size)

    @property
    def here(self) -> range:
        """The peers of this process."""
        return self.blocks[self.group.rank]

    def _tokens(self, peer: int) -> int:
        schedule, own = self.schedules[peer], self.peers[peer]
        of_a_pass = sum(len(side.ids) for i in own for side in self.train[i].sides)
        return of_a_pass * schedule.batches * schedule.batch_size // max(len(own), 1)


@dataclass(frozen=True)
class PeerProgress:
    """Where a run stands between two rounds; the peers' state and the counts go into a checkpoint.

    A process has the rows of its own peers; the counts are those of all.

    Attributes:
        peers: The peers' state.
        drawn: Batches that each peer has drawn so far.
        before_mixing: The bank of the last round before it was mixed, where that is what is judged.
        fruitless: Rounds in a row in which nothing finite came of a real peer's training.
    """

    peers: PeerState
    drawn: list[int]
    before_mixing: AdapterBank | None = None
    fruitless: int = 0


def compared(parts: PeerParts) -> PeerParts:
    """The same with the base's word on all preferences; nothing else where there are none."""
    lists = [parts.train, *parts.validation]
    train, *validation = with_references(parts.model, lists, parts.rules.wave_tokens, parts.group)
    return replace(parts, train=train, validation=validation)


def start(parts: PeerParts) -> PeerProgress:
    """Everybody's first adapter: the same A, B and head."""
    row = {name: t for name, t in parts.model.initial.items() if name not in parts.frozen}
    bank = AdapterBank.repeat(row, len(parts.here))
    memory = {name: t.expand(len(parts.here), *t.shape).clone() for name, t in parts.first_memory.items()}
    peers = PeerState(0, bank, parts.optimiser.init(bank), Estimates(parts.sent), memory)
    return PeerProgress(peers, [0] * len(parts.peers))


def play_round(parts: PeerParts, now: PeerProgress) -> tuple[PeerProgress, dict[str, Any]]:
    """One round: the new standing, and its row of metrics.

    Raises:
        Diverged: The numbers of every peer that trained are not finite.
    """
    began = time.perf_counter()

    sent = parts.group.sent
    like = payload_like(parts.algorithm, 0, parts.sent, {})
    transport = PeerTransport(
        parts.here,
        fetch=partial(rows_heard, parts.group, parts.blocks),
        deliver=partial(payloads_heard, parts.group, parts.blocks, like=like),
    )
    peers, report = peer_round(
        now.peers,
        partial(train, parts, now.drawn),
        parts.mixing(now.peers.round),
        parts.sent.keys(),
        parts.algorithm,
        seed=parts.seed,
        transport=transport,
    )
    moved = moved_since(parts.group, sent)
    told = _told(parts.group, report)
    for peer in told["peers_left_out"]:
        log.warning(
            "round %d: peer %d goes on from where it was, its loss or update is not finite, or too large",
            peers.round,
            peer + 1,
        )
    if told["peers_left_out"] and len(told["peers_left_out"]) == int(report.active.sum()):
        raise Diverged(f"round {peers.round}: the loss or update of every peer is not finite, or too large")
    drawn = [
        count + (schedule.batches if takes_part else 0)
        for count, schedule, takes_part in zip(
            now.drawn, parts.schedules, report.active.tolist(), strict=True
        )
    ]
    row = _row(peers.round, report, told) | moved | {"seconds": time.perf_counter() - began}
    after = PeerProgress(peers, drawn, report.trained.bank if parts.judged == "before" else None)
    return after, row | _apart(parts, after)


def train(parts: PeerParts, drawn: Sequence[int], state: PeerState, who: Bool[Tensor, " peers"]) -> Trained:
    """Train those of the peers of this process who take part.

    Args:
        parts: What the run is made of.
        drawn: Batches that each peer has drawn so far.
        state: Where the peers are.
        who: Whether a peer takes part.
    """
    rows = parts.here.start + who.nonzero()[:, 0]
    work = (
        plan_work(
            parts.train,
            parts.peers[peer],
            parts.schedules[peer],
            parts.model.layout,
            seed=parts.seed,
            client=parts.first + peer,
            round_=state.round,
            drawn=drawn[peer],
        )
        for peer in rows.tolist()
    )
    first = parts.first + parts.here.start
    bank = state.bank.tensors.keys()
    trains = parts.algorithm.trains(bank, state.round) | (parts.own & bank)
    return train_peers(parts.model, state, work, parts.rules, parts.frozen, first, trains)


def _told(group: Group, report: PeerReport) -> dict[str, list[Any]]:
    """What the peers of all processes say of their training, a number per peer; and who was left out."""
    trained = report.trained
    own = {
        "loss": trained.loss.tolist(),
        "correct": trained.correct.tolist(),
        "labels": trained.labels.tolist(),
        "tokens": trained.tokens.tolist(),
        "peers_left_out": report.left_out,
        "bytes_sent": [report.bytes_sent],
    }
    everyone = group.gather(own)
    return {name: [value for process in everyone for value in process[name]] for name in own}


def _row(round_: int, report: PeerReport, told: dict[str, list[Any]]) -> dict[str, Any]:
    seen = [loss for loss in told["loss"] if not math.isnan(loss)]
    labels = sum(told["labels"])
    return {
        "round": round_,
        "train_loss": sum(seen) / len(seen) if seen else math.nan,
        "train_accuracy": sum(told["correct"]) / labels if labels else math.nan,
        "peer_train_loss": told["loss"],
        "peers_out": (~report.active).nonzero()[:, 0].tolist(),
        "peers_left_out": told["peers_left_out"],
        # What one sends another receives.
        "bytes_up": sum(told["bytes_sent"]),
        "bytes_down": sum(told["bytes_sent"]),
        "tokens": sum(told["tokens"]),
    }


def _apart(parts: PeerParts, now: PeerProgress) -> dict[str, Any]:
    """How far the peers are apart."""
    began = time.perf_counter()
    apart = consensus(judged(parts, now), parts.frozen, parts.modules, len(parts.peers), parts.group.sum)
    return {
        "consensus_error": apart.error,
        "consensus_error_relative": apart.relative,
        "eval_seconds": time.perf_counter() - began,
    }


def judged(parts: PeerParts, now: PeerProgress) -> AdapterBank:
    """The adapters that a round is judged by, of the peers of this process."""
    if parts.judged == "before" and now.before_mixing is not None:
        return now.before_mixing
    return now.peers.bank
