"""How long a round takes by the layers that it trains, everything else the same.

    python benchmarks/layers.py --data_dir FOLDER --out benchmarks/results/layers.json

All contenders play the same round again and again, in turns: the same clients, the same examples, from the
same adapter. The server's gradient and its scores are in the time of all but `fed` and the last; `all` is
gradient priority that selects every layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process

prepare_process()

from machine import describe_machine, versions  # noqa: E402

from fedloom.federation.server import initial_state  # noqa: E402
from fedloom.options.fed import FedConfig  # noqa: E402
from fedloom.training.fed_rounds import ServerProgress, play_round  # noqa: E402
from fedloom.training.setup_fed import Parts, build  # noqa: E402

CONTENDERS: dict[str, dict[str, Any]] = {
    "fed": {"train_mode": "fed"},
    "all": {"max_layer_num": 10**6},
    "priority": {"layer_policy": "priority"},
    "random": {"layer_policy": "random"},
    "first": {"layer_policy": "first"},
    "last": {"layer_policy": "last"},
    "last, server_grad_scale 0": {"layer_policy": "last", "server_grad_scale": 0.0},
}


def contender(parts: Parts, config: FedConfig, changes: dict[str, Any]) -> tuple[FedConfig, Parts]:
    """The same parts under other rules; `fed` keeps what the clients of the others have."""
    config = replace(config, **changes)
    focus = parts.focus
    assert focus is not None
    focus = replace(
        focus,
        policy=config.layer_policy,
        highest=config.max_layer_num,
        server_grad_scale=config.server_grad_scale,
    )
    return config, replace(parts, focus=None if config.train_mode == "fed" else focus)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_name", default="smollm2-135m")
    parser.add_argument("--data_name", default="ChilleD/MultiArith")
    parser.add_argument("--data_dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--client_batch_per_step", type=int, default=8)
    parser.add_argument("--max_layer_num", type=int, default=6)
    parser.add_argument("--min_layer_num", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    own = {name: value for name, value in vars(options).items() if name not in ("repeats", "out")}
    config, parts = build(FedConfig(train_mode="fedGradFocus", **own))
    start = ServerProgress(initial_state(parts.model.initial, parts.algorithm), [0] * config.client_num)
    turns: list[dict[str, dict[str, Any]]] = []
    for turn in range(options.repeats + 1):
        turns.append({})
        for name, changes in CONTENDERS.items():
            rules, its_parts = contender(parts, config, changes)
            _, row = play_round(rules, its_parts, start)
            turns[-1][name] = row
            print(f"{turn or 'warm-up'}  {name:26} {row['seconds']:.3f} s", flush=True)
    result = {
        "kind": "layers",
        "settings": own | {"layers": len(parts.model.adapted), "clients": config.client_num_per_step},
        "dtype": config.dtype,
        "contenders": [_summary(name, turns[1:]) for name in CONTENDERS],
        "machine": describe_machine(parts.model.device),
        "versions": versions(),
        "date": date.today().isoformat(),
        "command": "python benchmarks/layers.py --data_dir FOLDER",
    }
    result["settings"]["data_dir"] = None  # where the files lie says nothing to others
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _summary(name: str, turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians; ratios are taken within each turn."""
    rows = [turn[name] for turn in turns]
    return {
        "name": name,
        "seconds": [row["seconds"] for row in rows],
        "median_seconds": statistics.median(row["seconds"] for row in rows),
        **{
            f"of_{other}": statistics.median(turn[name]["seconds"] / turn[other]["seconds"] for turn in turns)
            for other in ("fed", "all")
        },
        "bytes": rows[0]["bytes_up"] + rows[0]["bytes_down"],
        "tokens": rows[0]["tokens"],
        "selected_layers": rows[0].get("selected_layers"),
    }


if __name__ == "__main__":
    sys.exit(main())
