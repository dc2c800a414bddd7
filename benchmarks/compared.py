"""The folder of a comparison as one file, whose table a page shows.

    fedloom compare configs/compare/sst2-methods.yaml --out_dir FOLDER
    python benchmarks/compared.py configs/compare/sst2-methods.yaml FOLDER --out FILE.json

Kept are the numbers of the runs that have come to their end, by setting and seed; means, intervals and tests
are made from them by what `fedloom compare` prints its table with.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import table
from comparison_folder import Runs, write_result

from fedloom.options.compare import read_plan
from fedloom.report.comparison import Sample, compared, sample_of, spent_on, within
from fedloom.runs.record import RunRecord


def samples_of(config: Path, runs: Runs) -> dict[str, Any]:
    """The metric that is compared, and the numbers of every setting."""
    plan, by_setting = read_plan(config), dict[str, list[RunRecord]]()
    for label, run in runs:
        by_setting.setdefault(label, []).append(within(run, plan.budget))
    samples = [sample_of(label, plan.metric, own, {}) for label, own in by_setting.items()]
    return {
        "metric": plan.metric,
        "budget": dict(plan.budget),
        "samples": [asdict(sample) for sample in samples],
    }


def compared_table(result: dict[str, Any]) -> list[str]:
    """A row for each setting, the first one first, with which the others are compared."""
    share = result["metric"].endswith(("accuracy", "success"))
    number = (lambda x: f"{100 * x:.1f}") if share else (lambda x: f"{x:.4g}")
    settings = compared([_read(one) for one in result["samples"]])
    has_own, has_apart = (
        any(column in one.sample.columns for one in settings) and result["metric"] != column
        for column in ("personal_val_accuracy", "consensus_error_relative")
    )
    # What comes down is the server's and seldom compressed: what clients send is told apart from it.
    has_up = all("bytes_up" in one.sample.columns for one in settings)
    rows = []
    for one in settings:
        columns = {name: statistics.fmean(by.values()) for name, by in one.sample.columns.items() if by}
        against = ""
        if not math.isnan(one.low):
            low, high = number(one.low), number(one.high)
            against = f"{'+' * (one.difference > 0)}{number(one.difference)} ({low} to {high})"
        own = [f"{100 * columns['personal_val_accuracy']:.1f}" if "personal_val_accuracy" in columns else ""]
        apart = [f"{columns.get('consensus_error_relative', math.nan):.2g}"]
        rows.append(
            [
                f"`{one.sample.label}`".replace("|", r"\|"),
                str(len(one.sample.metric)),
                number(one.mean) + ("" if math.isnan(one.sd) else f" ± {number(one.sd)}"),
                *own * has_own,
                *apart * has_apart,
                against,
                one.verdict,
                *([f"{columns['bytes_up'] / 1e6:.3g}"] if has_up else []),
                f"{columns['bytes'] / 1e6:.1f}",
            ]
        )
    unit = ", %" if share else ""
    head = ["setting", "n", f"{result['metric']}{unit}", *["clients' own accuracy, %"] * has_own]
    head += ["consensus error, relative"] * has_apart
    head += [
        f"against `{settings[0].sample.label}`{', points' if share else ''}",
        "",
        *["MB up"] * has_up,
        "MB",
    ]
    note = (
        "n seeds; mean ± standard deviation; differences seed by seed with their 95 % intervals; higher or "
        "lower: p < 0.05 in a paired t-test after Holm's correction. MB: sent in all rounds, up by clients "
        "or peers alone, else both ways."
    )
    if result.get("budget"):
        note += f" {spent_on(result['budget'])}"
    return [*table(head, rows), "", note]


def _read(one: Mapping[str, Any]) -> Sample:
    """A sample as the file has it, in which seeds are text."""
    columns = {name: {int(s): n for s, n in by.items()} for name, by in one["columns"].items()}
    return Sample(one["label"], {int(s): n for s, n in one["metric"].items()}, columns, {})


def main(arguments: list[str] | None = None) -> int:
    """Read what is there, and write. Returns the exit status."""
    return write_result("compared", __doc__, samples_of, arguments)


if __name__ == "__main__":
    sys.exit(main())
