"""Differences of the same settings in several comparisons, one row each.

    python benchmarks/across.py benchmarks/results/{svamp,gsm8k}-resting-layers.json \
        --pair layer_policy=spaced layer_policy=random --out benchmarks/results/resting-layers.json

Of every pair the first less the second, seed by seed, from results that `compared.py` has made.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cells import differences, table


def by_seed(result: dict[str, Any], first: str, second: str) -> dict[str, float]:
    """How much more the first setting has of what is compared, of every seed that both have."""
    metrics = {sample["label"]: sample["metric"] for sample in result["samples"]}
    for label in (first, second):
        if label not in metrics:
            raise SystemExit(f"error: no setting {label!r}; there are {', '.join(metrics)}")
    found = {s: n - metrics[second][s] for s, n in metrics[first].items() if s in metrics[second]}
    if not found:
        raise SystemExit(f"error: {first!r} and {second!r} have no seed in common")
    return found


def across_table(result: dict[str, Any]) -> list[str]:
    """A row per comparison, a column per pair."""
    rows = [
        [f"`{row['comparison']}`", *(differences(pair.values()) for pair in row["pairs"])]
        for row in result["rows"]
    ]
    head = [result["metric"], *(f"`{first}` less `{second}`" for first, second in result["pairs"])]
    seeds = sorted({len(pair) for row in result["rows"] for pair in row["pairs"]})
    looks = len(rows) * (len(head) - 1)
    note = (
        f"Of the tables above, {' or '.join(map(str, seeds))} seeds: mean difference, seed by seed, and its "
        f"95 % interval; bold: it does not hold 0. Nothing is corrected for the number of looks, {looks}."
    )
    return [*table(head, rows), "", note]


def main(arguments: list[str] | None = None) -> int:
    """Read, subtract, write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files that compared.py has written")
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar="SETTING")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    read = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in options.results}
    rows = [
        {"comparison": name, "pairs": [by_seed(result, *pair) for pair in options.pair]}
        for name, result in read.items()
    ]
    metric, *others = sorted({result["metric"] for result in read.values()})
    if others:
        raise SystemExit(f"error: {metric} and {others[0]} are compared; one table has one metric")
    found = {"kind": "across", "metric": metric, "pairs": options.pair, "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
