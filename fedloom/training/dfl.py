"""A run of peers on a graph, without a server: what the loop over rounds must know of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedloom.federation.attacks import summary_of
from fedloom.federation.choco import as_bank
from fedloom.federation.matrix import Edge
from fedloom.federation.peers import PeerState
from fedloom.model.bank import AdapterBank, Row
from fedloom.runs.checkpoint import (
    are_counts,
    check_state,
    damaged_checkpoint,
    load_state,
    save_checkpoint,
)
from fedloom.training import loop
from fedloom.training.graph_evaluation import answered, averaged, evaluated
from fedloom.training.graph_parts import PeerParts, PeerProgress, compared, start
from fedloom.training.graph_rounds import play_round
from fedloom.training.loop import Intervals, RunSteps
from fedloom.training.lost_rounds import with_lost


def drive(
    parts: PeerParts, intervals: Intervals, folder: Path, checkpoint: Path | None = None
) -> PeerProgress:
    """Run rounds until there have been enough.

    Args:
        parts: What the run is made of.
        intervals: How many rounds, and what happens how often.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
    """
    parts = compared(parts, folder)
    if parts.budget is not None:
        parts = replace(parts, budget=with_lost(parts.budget, folder, checkpoint, parts.group))
    run_steps = RunSteps(
        start=partial(start, parts),
        restore=partial(_restore, parts),
        rounds_done=lambda now: now.peers.round,
        play=partial(_played, parts),
        validate=partial(_validated, parts),
        answer=partial(answered, parts),
        stops=partial(_reason_to_stop, parts, intervals.rounds),
        save=partial(_save, parts),
        saves_alone=False,
        at_end=lambda now: {"averaged_adapter": vars(averaged(parts, now))} | summary_of(parts.attackers),
        advice="Lower lr (or mixing_step, where compress is set), or set clip_norm, under another exp_name",
    )
    return loop.drive(run_steps, intervals, folder, checkpoint, parts.group)


def _played(parts: PeerParts, now: PeerProgress) -> tuple[PeerProgress, dict[str, Any]]:
    after, row = play_round(parts, now)
    return after, row if parts.budget is None else parts.budget.row(row, after.drawn)


def _validated(
    parts: PeerParts, now: PeerProgress, row: dict[str, Any]
) -> tuple[PeerProgress, dict[str, Any]]:
    now, row = evaluated(parts, now, row)
    if parts.budget is not None and row["round"] == 0:
        row = parts.budget.row(row, now.drawn)
    return now, row


def _reason_to_stop(parts: PeerParts, rounds: int, now: PeerProgress) -> str | None:
    if parts.budget is None or now.peers.round >= rounds:
        return None
    return parts.budget.reason_to_stop(now.peers.round, now.drawn)


def _save(parts: PeerParts, folder: Path, now: PeerProgress) -> None:
    """Leave a checkpoint: a PEFT adapter folder per evaluated peer, and the state of all."""
    if now.peers.round == 0:
        return
    state_rows, local = _tensors(now.peers), parts.local
    counts = [len(block) for block in parts.blocks]
    # Of an edge between two ranks, both have the same estimate: that of the sender is kept.
    leaving = {edge: row for edge, row in now.peers.estimates.rows.items() if edge[0] in local}
    edges = parts.group.gather(sorted(leaving))
    estimates = as_bank(leaving, parts.sent).tensors if any(edges) else {}
    collected = {name: (rows, counts) for name, rows in state_rows.items()}
    collected |= {f"estimate.{name}": (rows, [*map(len, edges)]) for name, rows in estimates.items()}
    # One after another to the CPU: a GPU need not hold the rows of all.
    tensors = {
        name: t.cpu()
        for name, (rows, of_rank) in collected.items()
        if (t := parts.group.collect(rows, of_rank)) is not None
    }
    if parts.group.rank != 0:
        return
    bank = AdapterBank(
        {name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")}
    )
    frozen = {name: t.detach().cpu() for name, t in parts.frozen.items()}

    def write_adapters(path: Path) -> None:
        first = path / f"peer-{parts.shown[0] + 1:04d}"
        for peer in parts.shown:
            of_peer = path / f"peer-{peer + 1:04d}"
            parts.model.save(frozen | bank.row(peer), of_peer)
            if parts.beside is not None:
                parts.beside.write(of_peer, like=first if first != of_peer else None)

    save_checkpoint(
        folder,
        now.peers.round,
        write_adapter=write_adapters,
        tensors=tensors,
        state={
            "round": now.peers.round,
            "drawn": now.drawn,
            "edges": [list(edge) for rank in edges for edge in rank],
        },
    )


def _tensors(peers: PeerState) -> Row:
    tensors = {f"adapter.{name}": t for name, t in peers.bank.tensors.items()}
    tensors |= {f"optimiser.{name}": t for name, t in peers.optimiser.items()}
    return tensors | {f"memory.{name}": t for name, t in peers.memory.items()}


def _restore(parts: PeerParts, checkpoint: Path) -> PeerProgress:
    """The progress that a checkpoint holds; a process takes the rows of its own peers.

    Raises:
        Damaged: It is not one of this run.
    """
    local, device = parts.local, parts.model.device
    tensors, state = load_state(checkpoint)
    everybody = len(parts.peers)
    edges = _edges(checkpoint, state, everybody)
    begun = start(parts).peers
    expected = {name: t.new_empty(everybody, *t.shape[1:]) for name, t in _tensors(begun).items()}
    if edges:
        expected |= {f"estimate.{n}": t.new_empty(len(edges), *t.shape) for n, t in parts.sent.items()}
    check_state(checkpoint, tensors, expected)
    if not are_counts(state.get("drawn"), everybody):
        raise damaged_checkpoint(checkpoint, "state.json", "the batches drawn are not a count for each peer")
    groups: dict[str, Row] = {"adapter": {}, "optimiser": {}, "memory": {}, "estimate": {}}
    for name in expected:  # in their own order, not the file's: a norm over all parameters is rounded by it
        t = tensors[name]
        group, _, rest = name.partition(".")
        groups[group][rest] = t if group == "estimate" else t[local.start : local.stop].clone().to(device)
    known = {
        edge: {name: t[k].clone().to(device) for name, t in groups["estimate"].items()}
        for k, edge in enumerate(edges)
        if edge[0] in local or edge[1] in local
    }
    estimates = replace(begun.estimates, rows=known)
    bank = AdapterBank(groups["adapter"])
    peers = PeerState(state["round"], bank, groups["optimiser"], estimates, groups["memory"])
    return PeerProgress(peers, state["drawn"])


def _edges(checkpoint: Path, state: dict[str, Any], peers: int) -> list[Edge]:
    """The edges whose estimates a checkpoint holds.

    Raises:
        Damaged: They are none.
    """
    edges = state.get("edges", [])
    if not isinstance(edges, list) or not all(
        are_counts(edge, 2) and edge[0] != edge[1] and max(edge) < peers for edge in edges
    ):
        raise damaged_checkpoint(checkpoint, "state.json", "the edges are not pairs of peers")
    return [(edge[0], edge[1]) for edge in edges]
