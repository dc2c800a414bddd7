"""`fedloom compare`: a grid of settings, every one with every seed, and which differences are no noise."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from fedloom.commands.cli import read_config
from fedloom.commands.jobs import Make, share_out
from fedloom.commands.report import run_report
from fedloom.commands.table import COMMANDS
from fedloom.errors import UserError, plain_console
from fedloom.options.compare import Plan, Planned, read_plan
from fedloom.options.parsing import RUN_CONFIG
from fedloom.report.comparison import (
    LEVEL,
    Compared,
    as_csv,
    as_latex,
    compared,
    sample_of,
    spent_on,
    spread,
    within,
)
from fedloom.runs.files import write_atomically
from fedloom.runs.record import RunRecord, read_run
from fedloom.runs.run_folder import check_same_run, sole_writer
from fedloom.training.shared import Shared


def run_compare(file: Path, out_dir: Path, jobs: int = 1) -> int:
    """Make all runs of a file that are not made yet, and write the tables.

    What has been done is not done again: after a kill the same command goes on, within a run from its last
    checkpoint. A run that fails is named, and the others go on. Base and data that runs have
    in common are read once, by each process.

    Args:
        file: See `options.compare.read_plan`.
        out_dir: Gets a folder per run, compare.csv, compare.tex and report.html.
        jobs: Runs that are made at the same time, each by a process.

    Returns:
        How many runs failed.

    Raises:
        UserError: A mistake in the file, found before anything runs, or another process works there.
    """
    plan = read_plan(file)
    for run in plan.runs:
        _config(plan.command, run, out_dir, file)
    with sole_writer(out_dir):
        failed = dict[str, str]()
        for number, ended, wrong in _made(plan, file, out_dir, jobs):
            run = plan.runs[number]
            if not ended or (jobs > 1 and wrong is None):
                end = " is made" if ended else ""
                print(f"run {number + 1}/{len(plan.runs)}: {run.label}, seed {run.seed}{end}", flush=True)
            if wrong is not None:
                failed[run.name] = wrong
                which = f"run {number + 1}/{len(plan.runs)} " if jobs > 1 else ""
                print(f"  {which}failed: {wrong}", flush=True)
        _write(plan, out_dir, failed)
    return len(failed)


def _made(plan: Plan, file: Path, out_dir: Path, jobs: int) -> Iterator[tuple[int, bool, str | None]]:
    """Make the runs; see `jobs.share_out`."""
    jobs = min(jobs, len(plan.runs))  # no share of threads and memory for processes without a run
    if jobs > 1:
        yield from share_out(maker, (file, out_dir, jobs), range(len(plan.runs)), jobs, out_dir)
        return
    make = maker(file, out_dir)
    for number in range(len(plan.runs)):
        yield number, False, None
        try:
            make(number)
        except UserError as error:
            yield number, True, str(error)
        else:
            yield number, True, None


def maker(file: Path, out_dir: Path, jobs: int = 1) -> Make:
    """What makes the run of a number, of a file's; runs that follow each other share what they read.

    Args:
        file: Of the comparison.
        out_dir: Holds the runs' folders.
        jobs: Processes that make runs of it at the same time.
    """
    plan, shared = read_plan(file), Shared(jobs)

    def make(number: int) -> None:
        run = plan.runs[number]
        try:
            config = _config(plan.command, run, out_dir, file)
            _make(plan.command, run, config, out_dir / run.name, file, shared)
        finally:
            _free_memory()

    return make


def _free_memory() -> None:
    """Give back what a run took: the next sizes its waves by what is free then."""
    gc.collect()  # a model is a large circle of references
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _config(command: str, run: Planned, out_dir: Path, file: Path, **more: Any) -> Any:
    """The options of a run, judged.

    Raises:
        UserError: They are wrong; says of which run.
    """
    given = {**run.options, "seed": run.seed, "exp_name": run.name, "out_dir": out_dir, **more}
    words = [f"--{name}={_word(value)}" for name, value in given.items()]
    try:
        config = read_config(COMMANDS[command], words, prog=f"fedloom {command}")
    except UserError as error:
        raise UserError(f"{file}, {run.label}: {error}") from None
    return config


def _word(value: Any) -> str:
    """A value of a YAML file as it stands on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _make(command: str, run: Planned, config: Any, folder: Path, file: Path, shared: Shared) -> None:
    if (folder / RUN_CONFIG).is_file():
        config = _config(command, run, folder.parent, file, resume=True)
        check_same_run(folder, config)
        if _finished(folder):
            print("  was made before", flush=True)
            return
    COMMANDS[command].run(config, shared=shared)


def _finished(folder: Path) -> bool:
    try:
        return read_run(folder, evaluation=False).finished
    except UserError:  # it has no metrics yet
        return False


def _write(plan: Plan, out_dir: Path, failed: Mapping[str, str]) -> None:
    planned: dict[str, list[Planned]] = {}
    for run in plan.runs:
        planned.setdefault(run.label, []).append(run)
    samples, records, untrained = [], list[RunRecord](), 0
    for label, runs in planned.items():
        done = [read_run(out_dir / run.name, evaluation=False) for run in runs if run.name not in failed]
        records += done
        why = {run.seed: failed[run.name] for run in runs if run.name in failed}
        by_then = [within(run, plan.budget) for run in done]
        untrained += sum(all(row["round"] == 0 for row in run.rows if plan.metric in row) for run in by_then)
        samples.append(sample_of(label, plan.metric, by_then, why))
    if not records:
        raise UserError(
            f"{out_dir}: no run came to its end; the first failed with: {next(iter(failed.values()))}"
        )
    if not any(sample.metric for sample in samples):
        if any(plan.metric in row for record in records for row in record.rows):
            raise UserError(f"budget: no run has a {plan.metric} by then; give more, or validate more often")
        known = sorted({name for record in records for name in record.rows[-1]})
        raise UserError(f"metric: no run has a {plan.metric}; there are {', '.join(known)}")
    settings = compared(samples)
    for name, text in (("compare.csv", as_csv), ("compare.tex", as_latex)):
        write_atomically(out_dir / name, text(settings, plan.metric), then="start again")
    show(settings, plan)
    if plan.budget and untrained:
        print(f"{untrained} runs have no {plan.metric} within the budget but that of before the first round")
    files = "compare.csv, compare.tex"
    try:
        run_report(runs=[str(record.folder) for record in records], output=str(out_dir / "report.html"))
    except UserError as error:
        print(f"no page: {error}")
    print(f"Tables: {files} in {out_dir}")


def show(settings: Sequence[Compared], plan: Plan) -> None:
    """Print the table: settings beside their numbers, or above them where a line has no room for both."""
    console = plain_console()
    rows = [["n", "mean ± sd", "difference", "", "sent", "time"], *map(_numbers, settings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    labels = ["setting", *(one.sample.label for one in settings)]
    widest = max(map(len, labels))
    beside = widest + 2 + max(map(len, lines)) <= console.width
    console.print(f"\n{plan.metric}; difference from the first setting ± half of its 95 % interval")
    for label, line in zip(labels, lines, strict=True):
        if beside:
            console.print(f"{label:{widest}}  {line}")
        else:
            console.print(label)
            console.print(f"  {line}", soft_wrap=True)
    console.print(
        f"Differences are taken seed by seed; higher or lower: p < {LEVEL:g} in a paired t-test, after "
        "Holm's correction for the number of settings. An interval is of its difference alone. "
        + (spent_on(plan.budget) if plan.budget else ""),
        soft_wrap=True,
    )


def _numbers(one: Compared) -> list[str]:
    """A setting's cells in the table; seeds that failed are told in the first."""
    sent, seconds = (list(one.sample.columns.get(name, {}).values()) for name in ("bytes", "seconds"))
    count, failed = len(one.sample.metric), len(one.sample.failed)
    difference = "" if math.isnan(one.difference) else f"{one.difference:+.4f}"
    return [
        f"{count} of {count + failed}" if failed else f"{count}",
        spread(one),
        difference + ("" if math.isnan(one.low) else f" ± {(one.high - one.low) / 2:.4f}"),
        one.verdict,
        decimal(round(sum(sent) / len(sent))) if sent else "",
        f"{sum(seconds) / len(seconds):.0f} s" if seconds else "",
    ]
