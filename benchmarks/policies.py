"""What choosing layers does to accuracy, bytes and time: the runs of configs, each with several seeds.

    python benchmarks/policies.py configs/layers-*.yaml --out benchmarks/results/policies.json

A run that stands in the result already is not run again, so that an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
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

from fedloom.commands.demo import answer_unseen  # noqa: E402
from fedloom.options.fed import FedConfig  # noqa: E402
from fedloom.options.parsing import parse  # noqa: E402
from fedloom.runs.metrics import read_rows  # noqa: E402
from fedloom.training.fed import drive  # noqa: E402
from fedloom.training.setup_fed import build  # noqa: E402


def run_once(config: FedConfig) -> dict[str, Any]:
    """One run, from its start to the answers of its adapter to unseen problems."""
    resolved, parts = build(config)
    with tempfile.TemporaryDirectory() as folder:
        final = drive(resolved, parts, Path(folder))
        rows = read_rows(Path(folder))
    return {
        "seed": config.seed,
        "rounds": rows[-1]["round"],
        "val_loss": rows[-1]["val_loss"],
        "val_accuracy": rows[-1]["val_accuracy"],
        "answer_accuracy_before": answer_unseen(parts, parts.model.initial).accuracy,
        "answer_accuracy": answer_unseen(parts, final.server.adapter).accuracy,
        "bytes_up": sum(row.get("bytes_up", 0) for row in rows),
        "bytes_down": sum(row.get("bytes_down", 0) for row in rows),
        "seconds": sum(row.get("seconds", 0.0) for row in rows),
        "selected_layers": [row["selected_layers"] for row in rows if "selected_layers" in row],
        "machine": describe_machine(parts.model.device),
        "versions": versions(),
        "date": date.today().isoformat(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[3407, 1, 2])
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)

    def once(path: Path, seed: int) -> dict[str, Any]:
        words = ["--config", str(path), "--report_to", "none"]
        return run_once(replace(parse(FedConfig, words, prog="fedloom fed"), seed=seed, data_seed=seed))

    command = "python benchmarks/policies.py configs/layers-*.yaml"
    run_missing(options.out, "policies", command, options.configs, options.seeds, once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
