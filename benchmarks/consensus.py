"""Accuracy and consensus error on graphs of growing connectivity: the runs of configs, with several seeds.

    python benchmarks/consensus.py configs/sst2-link*.yaml --data_dir FOLDER --out RESULT.json

A run that stands in the result already is not run again, so that an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process

prepare_process()

from comparison import run_missing  # noqa: E402
from machine import describe_machine, versions  # noqa: E402

from fedloom.options.graph import DflConfig  # noqa: E402
from fedloom.options.parsing import parse  # noqa: E402
from fedloom.runs.metrics import SUMMARY_FILE, read_rows  # noqa: E402
from fedloom.training.dfl import drive  # noqa: E402
from fedloom.training.setup_graph import build  # noqa: E402

SETTINGS = ("num_clients", "partition", "alpha", "num_rounds", "local_steps", "batch_size", "lr", "lora_r")
KEPT = ("round", "val_loss", "val_accuracy", "val_accuracy_min", "val_accuracy_max", "peer_val_accuracy")


def run_once(config: DflConfig) -> dict[str, Any]:
    """One run: what every evaluation said, and the accuracy of the averaged adapter."""
    resolved, parts = build(config)
    with tempfile.TemporaryDirectory() as folder:
        drive(resolved, parts, Path(folder))
        rows = read_rows(Path(folder))
        summary = json.loads((Path(folder) / SUMMARY_FILE).read_text(encoding="utf-8"))
    return {
        "seed": config.seed,
        "graph": config.name,
        "training_type": config.training_type,
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "averaged_accuracy": summary["averaged_adapter"]["accuracy"],
        "evaluations": [{k: row[k] for k in KEPT} for row in rows if "val_accuracy" in row],
        "consensus_error": [row["consensus_error"] for row in rows[1:]],
        "consensus_error_relative": [row["consensus_error_relative"] for row in rows[1:]],
        "train_loss": [row["train_loss"] for row in rows[1:]],
        "bytes_up": sum(row.get("bytes_up", 0) for row in rows),
        "machine": describe_machine(parts.model.device),
        "versions": versions(),
        "date": date.today().isoformat(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--data_dir")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3407, 1, 2])
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)

    def once(path: Path, seed: int) -> dict[str, Any]:
        words = ["--config", str(path), "--report_to", "none"]
        words += ["--data_dir", options.data_dir] if options.data_dir else []
        return run_once(replace(parse(DflConfig, words, prog="fedloom dfl"), seed=seed, data_seed=seed))

    command = "python benchmarks/consensus.py configs/sst2-link*.yaml --data_dir FOLDER"
    run_missing(options.out, "consensus", command, options.configs, options.seeds, once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
