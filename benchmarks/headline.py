"""The few numbers that the README shows, each from a result of its own."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def headline(results: Path) -> str:
    """What was measured, in a few lines of Markdown; docs/benchmarks.md has the tables behind it."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))

    rows = [
        *_round(read("multiarith"), "MultiArith"),
        *_round(read("gsm8k"), "GSM8K"),
        _peers(read("peers")),
        ("memory of 50 clients in a round", f"{read('memory')['ratio']:.2f} ×", "that of 4 clients"),
        *_priority(read("policies")),
    ]
    lines = ["| | | |", "| --- | --: | --- |", *(f"| {' | '.join(cells)} |" for cells in rows)]
    machine = read("multiarith")["machine"]
    return "\n".join([*lines, "", f"{machine['cpu']}, {machine['cores']} cores, no GPU."]) + "\n"


def _round(result: dict[str, Any], data: str) -> list[tuple[str, str, str]]:
    """The speed of a round against a loop over clients and against one central model."""
    (ours,) = (
        row for row in result["contenders"] if (row["name"], row["dtype"]) == ("fedloom", result["auto"])
    )
    what, pad = f"speed of a round of 4 clients, {data}", result["settings"]["pad"]
    return [
        (what, f"{ours['times_padded']:.1f} ×", f"PEFT client by client, padded to {pad} tokens"),
        (what, f"{ours['times_central']:.1f} ×", "one central PEFT model on the same batches"),
    ]


def _peers(result: dict[str, Any]) -> tuple[str, str, str]:
    what = f"speed of a round of {result['settings']['peers']} peers, SST-2"
    return what, f"{result['auto_ratio']:.1f} ×", "PEFT peer by peer, in the faster of its two dtypes"


def _priority(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Bytes and answers of gradient priority beside those of training all layers."""
    ours, every = result["runs"]["layers-priority"], result["runs"]["layers-fed"]

    def mean(runs: list[dict[str, Any]], *names: str) -> float:
        return statistics.mean(sum(run[name] for name in names) for run in runs)

    share = mean(ours, "bytes_up", "bytes_down") / mean(every, "bytes_up", "bytes_down")
    chance = result["runs"]["layers-random"]
    right, all_right, by_chance = (mean(runs, "answer_accuracy") for runs in (ours, every, chance))
    others = f"{all_right:.0%} with all layers, {by_chance:.0%} with as many at random"
    return [
        ("bytes with gradient priority", f"{share:.2f} ×", "those of all layers"),
        (f"answers right with it, {len(ours)} seeds", f"{right:.0%}", others),
    ]
