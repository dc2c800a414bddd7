"""One round of `fedloom dfl`: what the peers do, and what the round says of itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from fedloom.client.local import step_gradients
from fedloom.client.work import ClientWork, plan_work
from fedloom.federation.consensus import consensus
from fedloom.federation.layer_votes import VoteReport, voted_round
from fedloom.federation.peers import PeerReport, PeerState, Trained, peer_round
from fedloom.federation.server import Diverged
from fedloom.federation.transport import PeerTransport
from fedloom.federation.update import payload_like
from fedloom.model.bank import AdapterBank
from fedloom.runtimes.attacked import attacked_peers
from fedloom.runtimes.gathering import payloads_heard, rows_heard
from fedloom.runtimes.group import Group, moved_since
from fedloom.runtimes.in_process import train_peers
from fedloom.training.graph_parts import PeerParts, PeerProgress

log = logging.getLogger(__name__)


def play_round(parts: PeerParts, now: PeerProgress) -> tuple[PeerProgress, dict[str, Any]]:
    """One round: the new progress, and its row of metrics.

    Raises:
        Diverged: The numbers of every peer that trained are not finite.
    """
    began = time.perf_counter()

    sent = parts.group.sent
    like = payload_like(parts.algorithm, 0, parts.sent)
    transport = PeerTransport(
        parts.local,
        fetch=partial(rows_heard, parts.group, parts.blocks),
        deliver=partial(payloads_heard, parts.group, parts.blocks, like=like),
    )
    matrix, names = parts.mixing(now.peers.round), parts.sent.keys()
    how: dict[str, Any] = {"algorithm": parts.algorithm, "seed": parts.seed, "transport": transport}
    learn: Callable[..., Trained] = partial(train, parts, now.drawn)
    voted = None
    if parts.attackers is not None:
        learn = attacked_peers(learn, parts.attackers, matrix.active, names, parts.local, parts.group.sum)
    if parts.votes is None:
        peers, report = peer_round(now.peers, learn, matrix, names, **how)
    else:
        look = partial(first_gradients, parts, now.drawn)
        peers, report, voted = voted_round(now.peers, learn, look, matrix, names, parts.votes, **how)
    moved = moved_since(parts.group, sent)
    training = _gathered(parts.group, report)
    for peer in training["peers_left_out"]:
        log.warning(
            "round %d: peer %d goes on from where it was, its loss or update is not finite, or too large%s",
            peers.round,
            peer + 1,
            parts.algorithm.remark_on_rule,
        )
    if training["peers_left_out"] and len(training["peers_left_out"]) == int(report.active.sum()):
        raise Diverged(
            f"round {peers.round}: the loss or update of every peer is not finite, or too large"
            f"{parts.algorithm.remark_on_rule}"
        )
    drawn = [
        count + (schedule.batches if takes_part else 0)
        for count, schedule, takes_part in zip(
            now.drawn, parts.schedules, report.active.tolist(), strict=True
        )
    ]
    row = _row(peers.round, report, training, parts) | moved | _voted(parts, voted)
    if parts.attackers is not None:
        row |= {"attackers": int(sum(bool(report.active[peer]) for peer in parts.attackers.clients))}
    row |= {"seconds": time.perf_counter() - began}
    after = PeerProgress(peers, drawn, report.trained.bank if parts.evaluates == "before" else None)
    return after, row | _apart(parts, after)


def train(
    parts: PeerParts,
    drawn: Sequence[int],
    state: PeerState,
    who: Bool[Tensor, " peers"],
    chosen: Bool[Tensor, "peers layers"] | None = None,
) -> Trained:
    """Train those of the peers of this process who take part.

    Args:
        parts: What the run is made of.
        drawn: Batches that each peer has drawn so far.
        state: Where the peers are.
        who: Whether a peer takes part.
        chosen: The layers that each peer trains; None: all.
    """
    bank, rows = state.bank.tensors.keys(), who.nonzero()[:, 0].tolist()
    all_of_it = parts.algorithm.trains(bank, state.round) | (parts.personal & bank)
    by_row = [()] * len(who) if parts.votes is None or chosen is None else list(map(tuple, chosen.tolist()))
    # Each choice once, so that peers of one choice are seen to be that, and next to each other.
    names = {on: all_of_it - (parts.votes.resting(on) if parts.votes and on else set()) for on in set(by_row)}
    first = parts.first + parts.local.start
    work = _work(parts, drawn, state, sorted(rows, key=lambda row: by_row[row]))
    trains = {first + row: names[by_row[row]] for row in rows}
    return train_peers(parts.model, state, work, parts.rules, parts.frozen, first, trains, parts.personal)


def first_gradients(
    parts: PeerParts, drawn: Sequence[int], state: PeerState, who: Bool[Tensor, " peers"]
) -> AdapterBank:
    """The gradients of some peers on the first batch of their round, without dropout; a row for each.

    Args:
        parts: What the run is made of.
        drawn: Batches that each peer has drawn so far.
        state: Where the peers are.
        who: Whether a peer takes part.
    """
    rows = who.nonzero()[:, 0].tolist()
    steps = [work.steps[0] for work in _work(parts, drawn, state, rows, batches=1)]
    rules = replace(parts.rules, dropout_seed=None)
    gradients, _ = step_gradients(parts.model, state.bank.rows(rows), steps, rules, parts.frozen)
    return gradients


def _work(
    parts: PeerParts,
    drawn: Sequence[int],
    state: PeerState,
    rows: Iterable[int],
    batches: int | None = None,
) -> Iterator[ClientWork]:
    """What the peers in some rows do in a round; of their batches perhaps the first ones only."""
    for peer in (parts.local.start + row for row in rows):
        schedule = parts.schedules[peer]
        yield plan_work(
            parts.train,
            parts.peers[peer],
            schedule if batches is None else replace(schedule, batches=batches),
            parts.model.layout,
            seed=parts.seed,
            client=parts.first + peer,
            round_=state.round,
            drawn=drawn[peer],
            privacy=parts.rules.privacy,
        )


def _gathered(group: Group, report: PeerReport) -> dict[str, list[Any]]:
    """What the peers of all processes say of their training, a number per peer; and who was left out."""
    trained = report.trained
    of_process = {
        "loss": trained.loss.tolist(),
        "correct": trained.correct.tolist(),
        "labels": trained.labels.tolist(),
        "tokens": trained.tokens.tolist(),
        "peers_left_out": report.left_out,
        "bytes_sent": [report.bytes_sent],
    }
    everyone = group.gather(of_process)
    return {name: [value for process in everyone for value in process[name]] for name in of_process}


def _row(round_: int, report: PeerReport, trained: dict[str, list[Any]], parts: PeerParts) -> dict[str, Any]:
    shown = parts.shown
    seen = [loss for loss in trained["loss"] if not math.isnan(loss)]
    labels = sum(trained["labels"])
    return {
        "round": round_,
        "train_loss": sum(seen) / len(seen) if seen else math.nan,
        "train_accuracy": sum(trained["correct"]) / labels if labels else math.nan,
        "peer_train_loss": [trained["loss"][peer] for peer in shown],
        "peers_out": [peer for peer in shown if not report.active[peer]],
        "peers_left_out": trained["peers_left_out"],
        # What one sends another receives.
        "bytes_up": sum(trained["bytes_sent"]),
        "bytes_down": sum(trained["bytes_sent"]),
        "tokens": sum(trained["tokens"]),
    } | ({} if parts.sample is None else {"evaluated_peers": list(shown)})


def _voted(parts: PeerParts, report: VoteReport | None) -> dict[str, Any]:
    """Who has selected which layers, and the peers' mean vote."""
    if report is None or parts.votes is None:
        return {}
    everyone = parts.group.gather(
        {
            "chosen": report.chosen.tolist(),
            "votes": [] if report.votes is None else report.votes.tolist(),
        }
    )
    chosen = [some for rank in everyone for some in rank["chosen"]]
    row: dict[str, Any] = {
        "peer_selected_layers": [
            [n for n, on in zip(parts.votes.numbers, chosen[peer], strict=True) if on] for peer in parts.shown
        ]
    }
    # A vote has a sum of 1; who sat out has none.
    votes = [some for rank in everyone for some in rank["votes"] if any(some)]
    return row | {"layer_votes": np.mean(votes, axis=0).tolist()} if votes else row


def _apart(parts: PeerParts, now: PeerProgress) -> dict[str, Any]:
    """How far the peers are apart."""
    began = time.perf_counter()
    apart = consensus(
        evaluated_bank(parts, now), parts.frozen, parts.modules, len(parts.peers), parts.group.sum
    )
    return {
        "consensus_error": apart.error,
        "consensus_error_relative": apart.relative,
        "eval_seconds": time.perf_counter() - began,
    }


def evaluated_bank(parts: PeerParts, now: PeerProgress) -> AdapterBank:
    """The adapters that a round is judged by, of the peers of this process."""
    if parts.evaluates == "before" and now.before_mixing is not None:
        return now.before_mixing
    return now.peers.bank
