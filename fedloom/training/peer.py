"""`fedloom peer`: one real peer, with its own data, that mixes with its neighbours over libp2p."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from fedloom.data.own import is_own_files
from fedloom.errors import UserError
from fedloom.federation.update import payload_like
from fedloom.model.bank import Row
from fedloom.model.fingerprint import fingerprints
from fedloom.options.methods import chosen
from fedloom.options.peer import PeerConfig
from fedloom.runs.checkpoint import save_checkpoint
from fedloom.runs.inputs import Inputs
from fedloom.runs.logfile import logging_to
from fedloom.runs.metrics import read_rows
from fedloom.runs.record import RunRecord, read_run
from fedloom.runs.run_folder import opened, run_folder, write_clients, write_run_config
from fedloom.runtimes.libp2p.compressed import Compression
from fedloom.runtimes.libp2p.identity import read_identity
from fedloom.runtimes.libp2p.messages import Expected
from fedloom.runtimes.libp2p.mixes import MixingRule
from fedloom.runtimes.libp2p.neighbors import Neighbor, read_neighbors
from fedloom.runtimes.libp2p.node import Node, joined, listening
from fedloom.runtimes.libp2p.run_name import run_name
from fedloom.runtimes.libp2p.schema import Schema
from fedloom.runtimes.libp2p.statements import Signer
from fedloom.training import loop
from fedloom.training.default_bound import bounded
from fedloom.training.graph_parts import PeerParts, PeerProgress, compared, start
from fedloom.training.loop import Intervals, RunSteps
from fedloom.training.peer_rounds import (
    answered,
    evaluated,
    play_round,
    reason_to_stop,
    restore,
    with_spent,
)
from fedloom.training.private import with_noise
from fedloom.training.provenance import device_name, versions
from fedloom.training.setup_graph import build_one, intervals

log = logging.getLogger(__name__)

_AGREED = (
    "dataset_type",
    "dtype",
    "training_type",
    "lora_r",
    "lora_alpha",
    "use_rslora",
    "num_clients",
    "mix_head",
    "max_move",
    "mixing_step",
    "residual_rank",
    "layer_votes",
    "max_layer_num",
    "min_layer_num",
    "grad_eval",
    "num_rounds",
    "seed",
    "data_seed",
)
"""What must be the same, so that rows can be combined and rounds counted; training is each peer's own, its
client_rule included."""

_AGREED_PARTS = ("aggregator", "lora_aggregation", "share", "train_factors", "compress")


def run_peer(config: PeerConfig) -> RunRecord:
    """`fedloom peer`: from a config to a run's folder, and what it holds.

    Raises:
        UserError: A mistake of the user.
        KeyboardInterrupt: After a checkpoint was left.
    """
    config, which_aggregator = bounded(config)
    neighbors = _neighbors(config)
    folder = run_folder(config)
    with (
        opened(folder, config) as run,
        listening(Path(config.identity or ""), config.listen, neighbors) as (network, daemon),
    ):
        inputs = Inputs(run.inputs)
        resolved, parts = build_one(with_noise(run.config), inputs)
        write_run_config(folder, resolved, versions(), device_name(parts.model.device), inputs.found)
        write_clients(folder, parts.train, parts.peers, parts.validation)
        timeout, number, expected = config.round_timeout, config.client, _expected(config, parts)
        signer = Signer.of(Path(config.identity or ""), expected.run, number)
        with (
            logging_to(folder / config.log_path),
            joined(
                network, daemon, folder, number, neighbors, expected, timeout, signer, _rule(config, parts)
            ) as node,
        ):
            if which_aggregator:
                log.info("%s", which_aggregator)
            drive(parts, intervals(resolved), node, folder)
    return read_run(folder, evaluation=False)


def drive(parts: PeerParts, intervals: Intervals, node: Node, folder: Path) -> PeerProgress:
    """Play rounds until the last one is done.

    Args:
        parts: What this peer is made of.
        intervals: How many rounds, and what happens how often.
        node: This peer among its neighbours.
        folder: The run's folder.
    """
    parts = with_spent(compared(parts, folder), node, folder)
    run_steps = RunSteps(
        start=partial(start, parts),
        restore=lambda _: restore(parts, node),
        rounds_done=lambda now: now.peers.round,
        play=partial(play_round, parts, node, intervals.rounds),
        validate=partial(evaluated, parts),
        answer=partial(answered, parts),
        stops=partial(reason_to_stop, parts, node, intervals.rounds),
        save=partial(_save, parts),
        saves_alone=True,
        at_end=lambda now: _summary(folder),
        advice="Lower lr, or set clip_norm, under another exp_name",
    )
    # What a peer goes on from is not a checkpoint but what it trained last, which neighbours may have mixed.
    trained = folder / "exchange" if node.store.trained_round is not None else None
    return loop.drive(run_steps, intervals, folder, trained)


def _neighbors(config: PeerConfig) -> dict[int, Neighbor]:
    """Whom this peer talks to, after a look at all that its network needs."""
    assert config.identity is not None and config.neighbors is not None
    neighbors = read_neighbors(Path(config.neighbors), config.client, config.num_clients)
    my_id = read_identity(Path(config.identity))
    for neighbor in neighbors.values():
        if neighbor.id == my_id:
            raise UserError(
                f"neighbors: {config.neighbors} gives client {neighbor.client} the identity of this peer, "
                f"{my_id}; give that of its own key"
            )
    return neighbors


def _rule(config: PeerConfig, parts: PeerParts) -> MixingRule:
    texts = chosen(config)
    products = texts["lora_aggregation"]
    name = texts["aggregator"] if products == "factors" else products
    compression = None
    if texts["compress"] != "none":
        first = {name: t.detach().cpu() for name, t in parts.sent.items()}
        compression = Compression(parts.algorithm.codec, first, config.seed)
    aggregator = parts.algorithm.aggregator
    return MixingRule(config.max_move, config.mixing_step, aggregator, name, compression, config.seed)


def agreed_options(config: PeerConfig) -> dict[str, Any]:
    """The options that must be the same for all peers of a run, parts of an algorithm as they are chosen."""
    texts = chosen(config)
    agreed = {name: getattr(config, name) for name in _AGREED} | {name: texts[name] for name in _AGREED_PARTS}
    # Each peer's own files lie where they lie.
    return agreed | ({"dataset_type": "qa"} if is_own_files(config.dataset_type) else {})


def agreement(config: PeerConfig, parts: PeerParts) -> str:
    """Digests of what must be the same for all peers of a run: options and what is learned, the base.

    Those who train by another loss, or adapt another model, would move each other's rows to where they are of
    no use. Beta is a matter of those alone who learn preferences.
    """
    assert config.model_checkpoint is not None
    compares = any(tokens.rejected is not None for tokens in parts.train)
    agreed = agreed_options(config) | {
        "reading": parts.reading,
        "sent": sorted(parts.sent),
        "loss": ["DPO", config.dpo_beta] if compares else ["cross entropy"],
    }
    digest = hashlib.sha256(json.dumps(agreed).encode())
    for name, t in sorted(parts.model.initial.items()):
        digest.update(name.encode() + t.detach().cpu().float().numpy().tobytes())
    return run_name(digest.hexdigest()[:32], **fingerprints(config.model_checkpoint, parts.tokenizer))


def _expected(config: PeerConfig, parts: PeerParts) -> Expected:
    """What all messages of this run have in common; the digest tells a peer with other options apart."""
    payload = payload_like(parts.algorithm, config.client - 1, parts.sent)
    unlike = chosen(config)["compress"] != "none" or parts.votes is not None
    layers = () if parts.votes is None else parts.votes.names
    run = agreement(config, parts)
    return Expected(run, Schema.of(payload), config.num_rounds, config.num_clients, unlike, layers)


def _save(parts: PeerParts, folder: Path, now: PeerProgress) -> None:
    """Leave a checkpoint: this peer's PEFT adapter. What resuming needs lies in `exchange/`."""
    if now.peers.round == 0:
        return
    adapter: Row = {**parts.frozen, **now.peers.bank.row(0)}

    def write_adapter(path: Path) -> None:
        parts.model.save({n: t.detach().cpu() for n, t in adapter.items()}, path)
        if parts.beside is not None:
            parts.beside.write(path)

    save_checkpoint(
        folder,
        now.peers.round,
        write_adapter=write_adapter,
        tensors={},
        state={"round": now.peers.round},
    )


def _summary(folder: Path) -> dict[str, Any]:
    rows = read_rows(folder)
    refused: Counter[str] = Counter()
    for row in rows:
        refused.update(row.get("refused", {}))
    return {
        "refused": dict(refused),
        "rounds_missed": sum(row.get("rounds_missed", 0) for row in rows),
    }
