"""Two ranks with one thread each against one process with two threads: the same runs, in turns.

    python benchmarks/ranks.py --out benchmarks/results/ranks.json

Each run is the command that a user types, in processes of its own. Compared are the seconds of its rounds,
the first left out, and of its validations; starting and loading are in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, versions

THREADS = 2
CONTENDERS = {
    "process": ([], THREADS),
    "ranks": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(THREADS)], 1),
}


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The runs that are compared, on embedded data."""
    common = f"--dtype {options.dtype} --device cpu --report_to none"
    rounds, peers, clients, batches = options.rounds, options.peers, options.clients, options.batches
    fed = (
        f"fed --model_name {options.fed_model} --data_name arithmetic --train_mode fed "
        f"--client_num {2 * clients} --client_num_per_step {clients} --client_batch_per_step {batches} "
        f"--max_steps {rounds} --val_steps {rounds}"
    )
    dfl = (
        f"dfl --model_checkpoint {options.dfl_model} --dataset_type arithmetic --name ring "
        f"--num_clients {peers} --local_steps {batches} --batch_size 8 "
        f"--num_rounds {rounds} --eval_every {rounds} --save_every {rounds}"
    )
    return {name: f"{words} {common}".split() for name, words in (("fed", fed), ("dfl", dfl))}


def measured(words: list[str], way: str) -> dict[str, float]:
    """One run: medians over its rounds, and the sum of its validations."""
    launcher, threads = CONTENDERS[way]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, *launcher, "-m", "fedloom", *words, "--out_dir", folder, "--exp_name", "run"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        "round_seconds": statistics.median(row["seconds"] for row in rows[2:]),
        "eval_seconds": sum(row.get("eval_seconds", 0.0) for row in rows),
        "tokens": rows[-1]["tokens"],
        "val_loss": rows[-1]["val_loss"],
    }


def compared(words: list[str], repeats: int) -> dict[str, Any]:
    """One run both ways, in turns; ratios are taken within each turn."""
    turns = [{way: measured(words, way) for way in CONTENDERS} for _ in range(repeats)]
    return {
        "turns": turns,
        **{
            f"{what}_ratio": statistics.median(turn["ranks"][what] / turn["process"][what] for turn in turns)
            for what in ("round_seconds", "eval_seconds")
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fed_model", default="smollm2-135m")
    parser.add_argument("--dfl_model", default="minilm")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds: the first round is left out, so there must be at least 2")
    runs = {}
    for name, words in commands(options).items():
        runs[name] = compared(words, options.repeats)
        print(name, json.dumps(runs[name]), flush=True)
    result = {
        "kind": "ranks",
        "runs": runs,
        "settings": {
            "fed_model": _name(options.fed_model),
            "dfl_model": _name(options.dfl_model),
            **{name: getattr(options, name) for name in ("dtype", "clients", "peers", "batches")},
        },
        "machine": describe_machine(torch.device("cpu")),
        "versions": versions(),
        "date": date.today().isoformat(),
        "command": f"python benchmarks/ranks.py --rounds {options.rounds} --repeats {options.repeats}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _name(model: str) -> str:
    """A model without the folder that it lies in, which says nothing to others."""
    return Path(model).name if Path(model).exists() else model


if __name__ == "__main__":
    sys.exit(main())
