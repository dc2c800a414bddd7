"""One round of `fedloom peer`: train, exchange rows with whoever is there, mix; or catch up with others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.evaluation.answering import answer
from fedloom.evaluation.evaluate import validate_rows
from fedloom.federation.algorithm import AGGREGATOR, part_of, with_prefix
from fedloom.federation.neighbours import moved
from fedloom.federation.peers import PeerState, peer_round
from fedloom.federation.server import Diverged
from fedloom.model.bank import AdapterBank, Row
from fedloom.runs.metrics import read_rows
from fedloom.runtimes.libp2p.mixes import Mix
from fedloom.runtimes.libp2p.node import Node
from fedloom.training.graph_parts import PeerParts, PeerProgress
from fedloom.training.graph_rounds import evaluated_bank, train
from fedloom.training.peer_votes import select

log = logging.getLogger(__name__)

PATIENCE = 3
"""Rounds in a row without a finite result after which a peer stops: mixing has not brought it back."""


def sent(parts: PeerParts, peers: PeerState) -> Row:
    """What goes to neighbours: parameters, and what is mixed of the rule's memory."""
    return {name: t[0] for name, t in (peers.bank.tensors | peers.memory).items() if name in parts.sent}


def play_round(
    parts: PeerParts, node: Node, rounds: int, now: PeerProgress
) -> tuple[PeerProgress, dict[str, Any]]:
    """The next round that this peer can take part in: the new progress, and its row of metrics.

    What was trained before this process was killed is not trained again. Whatever others say, a peer ends
    when it has done the last round itself. After it the peer stays until nobody needs an answer.

    Args:
        parts: What this peer is made of.
        node: This peer among its neighbours.
        rounds: How many there are.
        now: Where this peer is.

    Raises:
        Diverged: Nothing finite has come of its training for `PATIENCE` rounds.
    """
    began = time.perf_counter()
    following = now.peers.round + 1
    trained_before = node.store.trained_round == following
    round_ = following if trained_before else min(node.next_round(following), rounds)
    missed = round_ - following
    if missed:
        log.warning(
            "rounds missed: %d, from round %d on; the neighbours are in %d", missed, following, round_
        )
    node.begin(round_)
    trained, training, layers = (
        recall(parts, node, round_) if trained_before else _train(parts, node, round_, now)
    )
    known = part_of({name: t[0].cpu() for name, t in trained.peers.memory.items()}, AGGREGATOR)
    mix = node.swap(round_, sent(parts, trained.peers), missed, layers, known)
    after = _add(trained, mix, trained.peers.bank if parts.evaluates == "before" else None)
    row: dict[str, Any] = {"round": round_, "rounds_missed": missed, **training, "neighbors": mix.neighbours}
    row |= {"neighbors_in_doubt": mix.in_doubt, "neighbors_bounded": mix.bounded, "neighbors_late": mix.late}
    if round_ == rounds or _too_dear(parts, after):
        mix = node.finish(round_)
        after = _add(after, mix, after.before_mixing)
        row["neighbors_late"] = [*row["neighbors_late"], *mix.late]
    row |= node.counts.since_last() | {"seconds": time.perf_counter() - began}
    return after, row if parts.budget is None else parts.budget.row(row, after.drawn)


def reason_to_stop(parts: PeerParts, node: Node, rounds: int, now: PeerProgress) -> str | None:
    """Why this peer trains in no further round before the last, if what it may tell of its data is spent.

    What was trained before this process was killed is paid for, and its round is ended.
    """
    if now.peers.round >= rounds or node.store.trained_round == now.peers.round + 1:
        return None
    return _too_dear(parts, now)


def _too_dear(parts: PeerParts, now: PeerProgress) -> str | None:
    return None if parts.budget is None else parts.budget.reason_to_stop(now.peers.round, now.drawn)


def with_spent(parts: PeerParts, node: Node, folder: Path) -> PeerParts:
    """The parts of a peer that counts as spent each round of which its neighbours may have heard.

    Statements in the journal say of how many rounds that is. What was trained is on the disk before it is
    sent, so that the two differ only where a file of the run was lost.

    Raises:
        UserError: Neither is there, and the run's rows show that it has been at work.
    """
    if parts.budget is None:
        return parts
    rounds, trained, drawn = set(node.journal.said), node.store.trained_round, 0
    if trained is not None:
        rounds.add(trained)
        (drawn,) = node.store.load_trained(trained)[1]["drawn"]
    if not rounds and any(row["round"] for row in read_rows(folder)):
        raise UserError(
            f"resume: {folder / 'exchange'} is gone, and with it what this peer sent its neighbours, so "
            "epsilon would begin at 0 again; put the folder back, or give another exp_name and add the "
            "epsilon of both runs"
        )
    lost = max(0, len(rounds) - drawn // parts.schedules[0].batches)
    if lost:
        log.warning("epsilon counts %d rounds that neighbours were told of and whose training is lost", lost)
    return replace(parts, budget=replace(parts.budget, lost=lost))


def _add(now: PeerProgress, mix: Mix, before_mixing: AdapterBank | None) -> PeerProgress:
    bank, memory = now.peers.bank.tensors, now.peers.memory
    after = moved({name: t[0] for name, t in (bank | memory).items()}, mix.differences)
    remembered = with_prefix(
        AGGREGATOR, {n: t[None].to(now.peers.bank.device) for n, t in mix.remembered.items()}
    )
    peers = replace(
        now.peers,
        bank=AdapterBank({name: after[name][None] for name in bank}),
        memory={name: after[name][None] for name in memory} | remembered,
    )
    return replace(now, peers=peers, before_mixing=before_mixing)


def _train(
    parts: PeerParts, node: Node, round_: int, now: PeerProgress
) -> tuple[PeerProgress, dict[str, Any], Mapping[int, str] | None]:
    """Train from where this peer is, and keep what came of it.

    Returns:
        The new progress, the metrics of training, and the layers that each edge carries.
    """
    state = replace(now.peers, round=round_ - 1)
    selected = select(parts, node, round_, state, now.drawn)
    began = time.perf_counter()
    learn = partial(train, parts, now.drawn, chosen=selected.chosen)
    # The matrix is that of a peer alone, so that nothing is mixed yet.
    peers, report = peer_round(state, learn, parts.mixing(round_), parts.sent)
    fruitless = now.fruitless + 1 if report.left_out else 0
    if fruitless:
        log.warning(
            "round %d: goes on from where it was, its loss or update is not finite, or too large%s",
            round_,
            parts.algorithm.remark_on_rule,
        )
    if fruitless == PATIENCE:
        raise Diverged(
            f"round {round_}: nothing finite has come of training for {PATIENCE} rounds"
            f"{parts.algorithm.remark_on_rule}"
        )
    trained = report.trained
    labels = int(trained.labels)
    row = {
        "train_loss": float(trained.loss),
        "train_accuracy": int(trained.correct) / labels if labels else math.nan,
        "tokens": int(trained.tokens),
        "peers_left_out": report.left_out,
        **selected.row,
    }
    drawn = [now.drawn[0] + parts.schedules[0].batches]
    tensors = {f"adapter.{name}": t for name, t in peers.bank.tensors.items()}
    tensors |= {f"optimiser.{name}": t for name, t in peers.optimiser.items()}
    tensors |= {f"memory.{name}": t for name, t in peers.memory.items()}
    kept = {"drawn": drawn, "row": row, "layers": selected.carried}
    node.keep_trained(round_, tensors, kept, time.perf_counter() - began)
    return PeerProgress(peers, drawn, fruitless=fruitless), row, selected.carried


def recall(
    parts: PeerParts, node: Node, round_: int
) -> tuple[PeerProgress, dict[str, Any], Mapping[int, str] | None]:
    """What training in a round came to before this process was killed; as `_train`."""
    tensors, state = node.store.load_trained(round_)
    groups: dict[str, Row] = {"adapter": {}, "optimiser": {}, "memory": {}}
    for name, t in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = t.to(parts.model.device)
    # In their own order, not the file's: a norm over all parameters is rounded by it.
    adapter, memory = groups["adapter"], groups["memory"]
    bank = AdapterBank({name: adapter[name] for name in parts.model.initial if name in adapter})
    memory = {name: memory[name] for name in parts.first_memory}
    peers = PeerState(round_, bank, groups["optimiser"], memory=memory)
    layers = state.get("layers")
    carried = None if layers is None else {int(peer): chosen for peer, chosen in layers.items()}
    return PeerProgress(peers, state["drawn"]), state["row"], carried


def restore(parts: PeerParts, node: Node) -> PeerProgress:
    """Where this peer was when it was killed: before the round that it trained last, which it ends again."""
    round_ = node.store.trained_round
    assert round_ is not None, "there is something to go on from"
    log.info("goes on from what it trained in round %d", round_)
    progress, *_ = recall(parts, node, round_)
    return replace(progress, peers=replace(progress.peers, round=round_ - 1))


def evaluated(
    parts: PeerParts, now: PeerProgress, row: dict[str, Any]
) -> tuple[PeerProgress, dict[str, Any]]:
    """This peer's loss and accuracy on what it is judged by."""
    began = time.perf_counter()
    if parts.budget is not None and row["round"] == 0:
        row = parts.budget.row(row, now.drawn)
    wave_tokens = parts.rules.wave_tokens
    (found,) = validate_rows(
        parts.model, evaluated_bank(parts, now), parts.validation, wave_tokens, parts.frozen
    )
    log.info(
        "round %d: %svalidation accuracy %.4f, mixed with peers %s",
        row["round"],
        f"train loss {row['train_loss']:.4f}, " if "train_loss" in row else "",
        found.accuracy,
        row.get("neighbors", []),
    )
    more = {"val_loss": found.loss, "val_accuracy": found.accuracy}
    return now, row | more | {"eval_seconds": time.perf_counter() - began}


def answered(parts: PeerParts, now: PeerProgress, row: dict[str, Any]) -> dict[str, Any]:
    """Let this peer answer some of its validation problems."""
    began = time.perf_counter()
    (found,) = answer(
        parts.model, evaluated_bank(parts, now), parts.tokenizer, parts.questions, frozen=parts.frozen
    )
    seconds = row.get("eval_seconds", 0.0) + time.perf_counter() - began
    return row | {"val_answer_accuracy": found.accuracy, "eval_seconds": seconds}
