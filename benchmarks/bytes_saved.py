"""What each way of sending less costs, in several comparisons: one row each way, one column per comparison.

    python benchmarks/bytes_saved.py benchmarks/results/sst2-priority-*.json --against DFL-LoRA \
        --way "four times the steps in a round" "DFL-LoRA num_rounds=*" --way "top-k" "CHOCO-SGD *" \
        --out benchmarks/results/priority.json

From results that `compared.py` has made: of every way the accuracy less that of the setting that sends all,
seed by seed, and the bytes as a share of that one's. The same way may have another label in another
comparison, as its numbers of rounds differ: a pattern of the shell's stands for it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cells import centre, table


def saved_by(result: dict[str, Any], pattern: str, against: str) -> dict[str, Any] | None:
    """The differences and the share of the bytes of the one setting that fits; None where none does.

    Raises:
        SystemExit: Several do, or there is nothing to compare with.
    """
    samples = {sample["label"]: sample for sample in result["samples"]}
    if against not in samples:
        raise SystemExit(f"error: no setting {against!r}; there are {', '.join(samples)}")
    fitting = [label for label in samples if fnmatchcase(label, pattern)]
    if len(fitting) > 1:
        raise SystemExit(f"error: {pattern!r} stands for {' and for '.join(fitting)}; one way is one setting")
    if not fitting:
        return None
    (way,), whole = (samples[label] for label in fitting), samples[against]
    both = sorted(way["metric"].keys() & whole["metric"].keys())
    if not both:
        raise SystemExit(f"error: {fitting[0]!r} and {against!r} have no seed in common")
    bytes_ = (way["columns"]["bytes"], whole["columns"]["bytes"])
    return {
        "differences": {seed: way["metric"][seed] - whole["metric"][seed] for seed in both},
        "share": statistics.fmean(bytes_[0][seed] / bytes_[1][seed] for seed in both),
    }


def bytes_saved_table(result: dict[str, Any]) -> list[str]:
    """A row per way: the share of the bytes, and the difference in points with its interval."""
    head = ["points of accuracy, with 95 % intervals", *(f"`{row['comparison']}`" for row in result["rows"])]
    rows = [["bytes all: accuracy, %", *(f"{100 * row['accuracy']:.1f}" for row in result["rows"])]]
    for way in result["ways"]:
        found = [row["ways"].get(way) for row in result["rows"]]
        cells = ["" if one is None else _cell(one) for one in found]
        rows.append([way, *cells])
    counts = sorted({len(w["differences"]) for row in result["rows"] for w in row["ways"].values()})
    note = (
        f"Against `{result['against']}`, n = {' or '.join(map(str, counts))} seeds: the share of its bytes, "
        "and the mean difference, seed by seed, with the 95 % interval of Student's t; bold: it does not "
        "hold 0. Nothing is corrected for the number of looks."
    )
    return [*table(head, rows), "", note]


def _cell(way: dict[str, Any]) -> str:
    mean, low, high = centre(100 * one for one in way["differences"].values())
    if math.isnan(low):
        return f"{way['share']:.2f}: {mean:+.1f}"
    bold = "**" if low > 0 or high < 0 else ""
    return f"{way['share']:.2f}: {bold}{mean:+.1f}{bold} ({low:+.1f} to {high:+.1f})"


def main(arguments: list[str] | None = None) -> int:
    """Read, subtract, write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files that compared.py has written")
    parser.add_argument("--against", required=True, metavar="SETTING", help="the one that sends all")
    parser.add_argument("--way", nargs=2, action="append", required=True, metavar=("NAME", "PATTERN"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows = []
    for file in options.results:
        result = json.loads(file.read_text(encoding="utf-8"))
        found = {name: saved_by(result, pattern, options.against) for name, pattern in options.way}
        (whole,) = (one for one in result["samples"] if one["label"] == options.against)
        rows.append(
            {
                "comparison": file.stem,
                "accuracy": statistics.fmean(whole["metric"].values()),
                "ways": {name: one for name, one in found.items() if one is not None},
            }
        )
    ways = [name for name, _ in options.way]
    written = {"kind": "bytes-saved", "against": options.against, "ways": ways, "rows": rows}
    options.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
