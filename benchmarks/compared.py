"""The folder of a comparison as one file, whose table a page shows.

    fedloom compare configs/compare/sst2-methods.yaml --out_dir FOLDER
    python benchmarks/compared.py configs/compare/sst2-methods.yaml FOLDER --out FILE.json

Kept are the numbers of the runs that have come to their end, by setting and seed; means, intervals and tests
are made from them by what `fedloom compare` prints its table with.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fedloom.process import prepare_process

prepare_process()

from cells import table  # noqa: E402
from machine import describe_machine, versions  # noqa: E402

from fedloom.errors import UserError  # noqa: E402
from fedloom.options.compare import read_plan  # noqa: E402
from fedloom.options.parsing import RUN_CONFIG  # noqa: E402
from fedloom.report.comparison import Sample, compared, sample_of  # noqa: E402
from fedloom.runs.files import write_atomically  # noqa: E402
from fedloom.runs.record import read_run  # noqa: E402


def read_samples(config: Path, folder: Path) -> tuple[str, list[Sample]]:
    """The metric that is compared, and every setting that has a finished run."""
    plan, runs = read_plan(config), dict[str, list[Any]]()
    for run in plan.runs:
        if (folder / run.name / RUN_CONFIG).is_file():
            record = read_run(folder / run.name, judged=False)
            runs.setdefault(run.label, []).extend([record] if record.finished else [])
    return plan.metric, [sample_of(label, plan.metric, own, {}) for label, own in runs.items() if own]


def compared_table(result: dict[str, Any]) -> list[str]:
    """A row for each setting, the first one first, against which the others are held."""
    by_seed = [
        Sample(
            one["label"],
            {int(seed): number for seed, number in one["metric"].items()},
            {name: {int(s): n for s, n in column.items()} for name, column in one["columns"].items()},
            {},
        )
        for one in result["samples"]
    ]
    rows = []
    for one in compared(by_seed):
        own, columns = one.sample.metric, one.sample.columns
        personal, sent, seconds = (
            list(columns.get(name, {}).values()) for name in ("personal_val_accuracy", "bytes", "seconds")
        )
        rows.append(
            [
                f"`{one.sample.label}`",
                str(len(own)),
                f"{100 * one.mean:.1f}" + ("" if len(own) < 2 else f" ± {100 * one.sd:.1f}"),
                f"{100 * sum(personal) / len(personal):.1f}" if personal else "",
                ""
                if one.low != one.low
                else f"{100 * one.difference:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})",
                one.verdict,
                f"{sum(sent) / len(sent) / 1e6:.1f}",
                f"{sum(seconds) / len(seconds):.0f}",
            ]
        )
    against = by_seed[0].label
    head = ["setting", "n", f"{result['metric']}, %", "clients' own, %", f"against {against}, points", ""]
    note = (
        "n seeds; mean ± standard deviation; differences seed by seed with their 95 % intervals; higher or "
        "lower: p < 0.05 in a paired t-test after Holm's correction. MB: sent up and down in all rounds, "
        "seconds: of the rounds, on a machine that did other work as well."
    )
    return [*table([*head, "MB", "seconds"], rows), "", note]


def main(arguments: list[str] | None = None) -> int:
    """Read what is there, and write. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path, help="file of the comparison")
    parser.add_argument("folder", type=Path, help="its --out_dir")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        metric, samples = read_samples(options.config, options.folder)
        if not samples:
            raise UserError(f"{options.folder}: no run has come to its end; give the comparison's --out_dir")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = {
        "kind": "compared",
        "command": f"fedloom compare configs/compare/{options.config.name}",
        "machine": describe_machine(torch.device("cpu")),
        "versions": versions(),
        "date": date.today().isoformat(),
        "metric": metric,
        "samples": [asdict(sample) for sample in samples],
    }
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
