"""What choosing layers does to accuracy, bytes and time: the runs of configs, each with several seeds.

    python benchmarks/policies.py configs/layers-*.yaml --out benchmarks/results/policies.json

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

from fedloom.startup import prepare_process

prepare_process()

from machine import describe_machine, versions  # noqa: E402

from fedloom.build import build  # noqa: E402
from fedloom.config import FedConfig  # noqa: E402
from fedloom.demo import answer_unseen  # noqa: E402
from fedloom.observe.metrics import read_rows  # noqa: E402
from fedloom.parsing import parse  # noqa: E402
from fedloom.run import drive  # noqa: E402


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
    runs: dict[str, list[dict[str, Any]]] = {}
    if options.out.is_file():
        runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"]
    for seed in options.seeds:
        for path in options.configs:
            done = runs.setdefault(path.stem, [])
            if any(run["seed"] == seed for run in done):
                continue
            config = parse(FedConfig, ["--config", str(path), "--report_to", "none"], prog="fedloom fed")
            done.append(run_once(replace(config, seed=seed)))
            print(path.stem, {name: value for name, value in done[-1].items() if name != "selected_layers"})
            _write(options.out, runs)
    _write(options.out, runs)
    return 0


def _write(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    last = [run for done in runs.values() for run in done][-1]
    # What stands below the table is the last run's; every run keeps its own.
    origin = {name: last[name] for name in ("machine", "versions", "date")}
    command = "python benchmarks/policies.py configs/layers-*.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": "policies", "command": command, **origin, "runs": runs}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
