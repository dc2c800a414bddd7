"""A run of peers on a graph, without a server: what the loop over rounds must know of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fedloom.federation.peers import PeerState
from fedloom.model.bank import AdapterBank, Row
from fedloom.options.graph import DflConfig
from fedloom.runs.checkpoint import (
    are_counts,
    check_state,
    damaged_checkpoint,
    load_state,
    save_checkpoint,
)
from fedloom.training import loop
from fedloom.training.graph_evaluation import answered, averaged, evaluated
from fedloom.training.graph_rounds import PeerParts, Standing, play_round, start
from fedloom.training.loop import Regime
from fedloom.training.setup_graph import pace


def drive(config: DflConfig, parts: PeerParts, folder: Path, checkpoint: Path | None = None) -> Standing:
    """Run `num_rounds` rounds.

    Args:
        config: As `build` returned it.
        parts: What the run is made of.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
    """
    regime = Regime(
        start=partial(start, parts),
        restore=partial(_restore, parts),
        rounds_done=lambda now: now.peers.round,
        play=partial(play_round, parts),
        validate=partial(evaluated, parts),
        answer=partial(answered, parts),
        stops=lambda now: None,
        save=partial(_save, parts),
        saves_alone=False,
        at_end=lambda now: {"averaged_adapter": vars(averaged(parts, now))},
        advice="Lower lr, or set clip_norm, under another exp_name",
    )
    return loop.drive(regime, pace(config), folder, checkpoint, parts.group)


def _save(parts: PeerParts, folder: Path, now: Standing) -> None:
    """Leave a checkpoint: a PEFT adapter folder per peer, and the state."""
    if now.peers.round == 0:
        return
    own = _tensors(now.peers)
    counts = [len(block) for block in parts.blocks]
    # One after another to the CPU: a GPU need not hold the rows of all.
    tensors = {
        name: t.cpu() for name, rows in own.items() if (t := parts.group.collect(rows, counts)) is not None
    }
    if parts.group.rank != 0:
        return
    bank = AdapterBank(
        {name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")}
    )
    used = {name: t.detach().cpu() for name, t in parts.used.items()}

    def write_adapters(path: Path) -> None:
        for peer in range(bank.clients):
            parts.model.save(used | bank.row(peer), path / f"peer-{peer + 1:04d}")

    save_checkpoint(
        folder,
        now.peers.round,
        write_adapter=write_adapters,
        tensors=tensors,
        state={"round": now.peers.round, "drawn": now.drawn},
    )


def _tensors(peers: PeerState) -> Row:
    tensors = {f"adapter.{name}": t for name, t in peers.bank.tensors.items()}
    return tensors | {f"optimiser.{name}": t for name, t in peers.optimiser.items()}


def _restore(parts: PeerParts, checkpoint: Path) -> Standing:
    """The standing of a checkpoint; a process takes the rows of its own peers.

    Raises:
        Damaged: It is not one of this run.
    """
    here, device = parts.here, parts.model.device
    tensors, state = load_state(checkpoint)
    everybody = len(parts.peers)
    expected = {n: t.new_empty(everybody, *t.shape[1:]) for n, t in _tensors(start(parts).peers).items()}
    check_state(checkpoint, tensors, expected)
    if not are_counts(state.get("drawn"), everybody):
        raise damaged_checkpoint(checkpoint, "state.json", "the batches drawn are not a count for each peer")
    groups: dict[str, Row] = {"adapter": {}, "optimiser": {}}
    for name, t in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = t[here.start : here.stop].clone().to(device)
    peers = PeerState(state["round"], AdapterBank(groups["adapter"]), groups["optimiser"])
    return Standing(peers, state["drawn"])
