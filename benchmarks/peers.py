"""A round of peers against a loop over them with PEFT, and how time and memory grow with their number.

    python benchmarks/peers.py speed --data_dir FOLDER --out benchmarks/results/peers.json
    python benchmarks/peers.py scale --data_dir FOLDER --out benchmarks/results/peers-scale.json

The loop is how a published script does it: one model, for each peer its adapter and its own Adam, batches
padded to their longest sentence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process, restart_prepared

if __name__ == "__main__":
    restart_prepared()
prepare_process()

import torch  # noqa: E402
from machine import describe_machine, forget_peak, peak_resident_bytes, versions  # noqa: E402
from peer_loop import PeerLoop  # noqa: E402

from fedloom.federation.peers import mix  # noqa: E402
from fedloom.model.bank import bytes_of  # noqa: E402
from fedloom.options.graph import DflConfig  # noqa: E402
from fedloom.training.graph_parts import PeerParts, PeerProgress, start  # noqa: E402
from fedloom.training.graph_rounds import play_round  # noqa: E402
from fedloom.training.setup_graph import build  # noqa: E402


def config_of(options: argparse.Namespace, **changes: Any) -> DflConfig:
    """What both parts have in common."""
    common = {
        "model_checkpoint": options.model,
        "dataset_type": "sst2",
        "data_dir": options.data_dir,
        "batch_size": 32,
        "device": options.device,
        "training_type": "LoRA",
    }
    return DflConfig(**(common | changes))


def limited(parts: PeerParts, examples: int) -> PeerParts:
    """The same peers with their first ``examples`` examples each."""
    from dataclasses import replace

    peers = [own[:examples] for own in parts.peers]
    schedules = [
        replace(s, batches=-(-len(own) // s.batch_size))
        for s, own in zip(parts.schedules, peers, strict=True)
    ]
    return replace(parts, peers=peers, schedules=schedules)


def seconds_of_round(parts: PeerParts, now: PeerProgress) -> tuple[float, dict[str, Any]]:
    """One round from the same standing, without evaluation."""
    began = time.perf_counter()
    _, row = play_round(parts, now)
    return time.perf_counter() - began, row


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """All contenders in turns."""
    stacked: dict[str, tuple[PeerParts, PeerProgress]] = {}
    loops: dict[str, PeerLoop] = {}
    auto = ""
    for dtype in ("auto", "float32", "bfloat16"):
        resolved, parts = build(config_of(options, dtype=dtype, num_clients=options.peers, name="ring"))
        auto = resolved.dtype if dtype == "auto" else auto
        if dtype != "auto" and resolved.dtype not in stacked:
            parts = limited(parts, options.examples)
            stacked[dtype] = parts, start(parts)
            loops[dtype] = PeerLoop(options.model, parts, dtype, options.device)
    agreement = {dtype: _agreement(*stacked[dtype], loops[dtype]) for dtype in stacked}
    turns = []
    for turn in range(options.repeats + 1):
        taken = {}
        for dtype in stacked:
            taken[f"loop {dtype}"] = loops[dtype].seconds_of_round()
            taken[f"fedloom {dtype}"], row = seconds_of_round(*stacked[dtype])
        print(turn or "warm-up", {name: round(value, 3) for name, value in taken.items()}, flush=True)
        turns.append(taken)
    turns = turns[1:]
    fastest = [min(turn["loop float32"], turn["loop bfloat16"]) for turn in turns]
    return {
        "kind": "peers",
        "auto": auto,
        "tokens": row["tokens"],
        "seconds": {name: [turn[name] for turn in turns] for name in turns[0]},
        "float32_ratio": statistics.median(t["loop float32"] / t["fedloom float32"] for t in turns),
        "auto_ratio": statistics.median(
            best / t[f"fedloom {auto}"] for best, t in zip(fastest, turns, strict=True)
        ),
        "agreement": agreement,
    }


def _agreement(parts: PeerParts, now: PeerProgress, loop: PeerLoop) -> float:
    """The largest relative difference of a peer's loss, without dropout."""
    from dataclasses import replace

    still = replace(parts, rules=replace(parts.rules, dropout_seed=None))
    _, row = play_round(still, now)
    theirs = loop.losses_without_dropout()
    return max(abs(a - b) / b for a, b in zip(row["peer_train_loss"], theirs, strict=True))


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Each number of peers in a process of its own."""
    runs = []
    for peers in options.sizes:
        words = [sys.executable, __file__, "one", "--peers", str(peers), "--examples", str(options.examples)]
        words += ["--model", options.model, "--device", options.device, "--out", str(options.out)]
        words += ["--data_dir", options.data_dir] if options.data_dir else []
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(runs[-1], flush=True)
    # A few peers do not fill a pass: what is added to them is activations.
    before, last = runs[-2:]
    added = (last["training_peak_bytes"] - before["training_peak_bytes"]) / (last["peers"] - before["peers"])
    return {"kind": "peers-scale", "runs": runs, "bytes_per_added_peer": added}


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One size: time of training and of mixing, peak memory."""
    graph = "random_regular:d=4"
    config = config_of(options, num_clients=options.peers, name=graph, training_type="DFL-LoRA")
    _, parts = build(config)
    parts = limited(parts, options.examples)
    now = start(parts)
    forget_peak()
    now, row = play_round(parts, now)
    now, row = play_round(parts, now)
    mixing = []
    for _ in range(5):
        began = time.perf_counter()
        mix(now.peers.bank, parts.mixing(now.peers.round).tensor(), now.peers.bank.tensors.keys())
        mixing.append(time.perf_counter() - began)
    row_bytes = bytes_of(now.peers.bank.row(0))
    moments = sum(t[0].numel() * t.element_size() for t in now.peers.optimiser.values())
    return {
        "peers": options.peers,
        "examples": options.examples,
        "seconds": row["seconds"],
        "mixing_seconds": statistics.median(mixing),
        "tokens": row["tokens"],
        "training_peak_bytes": peak_resident_bytes(),
        "row_bytes": row_bytes,
        "moment_bytes": moments,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("speed", "scale", "one"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data_dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peers", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    if options.what == "one":
        print(json.dumps(one(options)))
        return 0
    result = (speed if options.what == "speed" else scale)(options)
    result |= {
        "settings": {"model": options.model, "peers": options.peers, "examples": options.examples},
        "machine": describe_machine(torch.device("cpu" if options.device == "auto" else options.device)),
        "versions": versions(),
        "date": date.today().isoformat(),
        "command": f"python benchmarks/peers.py {options.what} --data_dir FOLDER "
        f"--examples {options.examples} --repeats {options.repeats}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
