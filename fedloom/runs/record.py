"""A run's folder, read back as it stands: finished or not, judged or not."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.options.parsing import RUN_CONFIG, RUN_RECORD
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runs.contents import (
    SUMMARY,
    check_clients,
    check_known,
    check_options,
    check_peers,
    check_rows,
    check_verdicts,
    command_of,
)
from fedloom.runs.metrics import METRICS_FILE, SUMMARY_FILE, read_rows
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runs.run_folder import CLIENTS_FILE

log = logging.getLogger(__name__)

EVAL_FOLDER, EVAL_FILE, PREDICTIONS_FILE = "eval", "eval.json", "predictions.jsonl"
"""What `fedloom eval` leaves: the two files, in a folder of the run's."""

_TELLING = (
    {"model_name", "data_name", "train_mode", "client_num", "seed"},
    {"model_checkpoint", "dataset_type", "training_type", "name", "num_clients", "seed"},
    {"model_checkpoint", "dataset_type", "training_type", "client", "num_clients", "seed"},
)
"""Options without which nobody can tell what was run: of `fed`, of `dfl`, and of `peer`."""


@dataclass(frozen=True)
class RunRecord:
    """What a run has left so far.

    Attributes:
        folder: Where it lies.
        options: All of its options, as `config.yaml` has them.
        device: What it ran on.
        versions: Version by package name.
        rows: Its metrics, a row per round; at least one.
        summary: `summary.json`; empty where the run has not come to its end.
        clients: `clients.json`: who holds what; empty for a run that did not write it.
        evaluation: `eval/eval.json`; empty where `fedloom eval` has not been called on the run.
    """

    folder: Path
    options: dict[str, Any]
    device: str
    versions: dict[str, str]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    clients: dict[str, Any]
    evaluation: dict[str, Any]

    def column(self, name: str) -> list[tuple[int, Any]]:
        """(round, value) of the rounds that have this metric, for a table or a plot."""
        return [(row["round"], row[name]) for row in self.rows if row.get(name) is not None]

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint, a PEFT adapter; None before the first.

        Of peers it is a folder with ``peer-0001``, …, one for each.
        """
        return latest_checkpoint(self.folder)

    @property
    def name(self) -> str:
        """As the user called it."""
        return str(self.options.get("exp_name", self.folder.name))

    @property
    def seed(self) -> Any:
        """Of every random choice of the run."""
        return self.options.get("seed")

    @property
    def command(self) -> str:
        """`fed`, `dfl` or `peer`."""
        return command_of(self.options)

    @property
    def model(self) -> str:
        """The model, whatever the command calls the option."""
        return str(self.options.get("model_checkpoint") or self.options.get("model_name"))

    @property
    def data(self) -> str:
        """The data set, whatever the command calls the option."""
        return str(self.options.get("dataset_type") or self.options.get("data_name"))

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return int(self.rows[-1]["round"])

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; a run that was resumed since has not."""
        return self.summary.get("rounds") == self.rounds


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """Read runs, in their order; in place of a folder that holds runs, all of these.

    Of such a folder, what cannot be shown is left out with a warning, such as a run that has just begun.

    Raises:
        UserError: None are given, one is given twice, or is not a run with at least one row of metrics.
    """
    if not folders:
        raise UserError("runs: none given; name the folders of runs, such as runs/demo")
    paths, inside = _expanded([Path(folder) for folder in folders])
    resolved = [os.path.realpath(path) for path in paths]  # resolve() raises on links that lead to themselves
    for number, path in enumerate(paths):
        if resolved[number] in resolved[:number]:
            raise UserError(f"runs: {path} is given twice; leave one of them out")
    found = []
    for path in paths:
        try:
            found.append(read_run(path))
        except UserError as error:
            if path not in inside:
                raise
            log.warning("left out: %s", error)
    if not found:
        raise UserError(f"runs: no run in {', '.join(folders)} can be shown; the reasons stand above")
    return found


def _expanded(paths: Sequence[Path]) -> tuple[list[Path], set[Path]]:
    """Folders of runs in place of a folder that holds some; and which were not named themselves."""
    every: list[Path] = []
    inside: set[Path] = set()
    for path in paths:
        runs = (
            []
            if (path / RUN_CONFIG).is_file()
            else sorted(each.parent for each in path.glob(f"*/{RUN_CONFIG}"))
        )
        every += runs or [path]
        inside |= set(runs)
    return every, inside


def read_run(folder: str | Path, *, evaluation: bool = True) -> RunRecord:
    """Read one run, one that has ended or one that still goes on.

    Args:
        folder: The run's.
        evaluation: Whether to read what `fedloom eval` left there too.

    Raises:
        UserError: The folder is no run, has no metrics yet, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / RUN_CONFIG).is_file():
        what = "holds no config.yaml" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} is not the folder of a run (it {what}){_runs_inside(folder)}")
    options = read_mapping(folder / RUN_CONFIG)
    if not any(names <= options.keys() for names in _TELLING):
        raise Damaged(folder / RUN_CONFIG, "the options of `fedloom fed`, `dfl` or `peer` are missing")
    check_options(folder / RUN_CONFIG, options, command_of(options))
    record = options.pop(RUN_RECORD, None) or {}
    rows = read_rows(folder)
    check_rows(folder / METRICS_FILE, rows)
    check_peers(folder, options, rows)
    if not rows:
        raise UserError(
            f"{folder / METRICS_FILE} has no rows, the run has done nothing yet; "
            "leave it out, or wait for its first round"
        )
    summary, clients = (read_mapping(folder / name) for name in (SUMMARY_FILE, CLIENTS_FILE))
    verdicts = read_mapping(folder / EVAL_FOLDER / EVAL_FILE) if evaluation else {}
    check_known(folder / SUMMARY_FILE, summary, SUMMARY)
    check_clients(folder / CLIENTS_FILE, clients)
    check_verdicts(folder / EVAL_FOLDER / EVAL_FILE, verdicts)
    return RunRecord(
        folder=folder,
        options=options,
        device=str(record.get("device", "")),
        versions=record.get("versions", {}),
        rows=rows,
        summary=summary,
        clients=clients,
        evaluation=verdicts,
    )


def _runs_inside(folder: Path) -> str:
    """Name the runs in a folder of runs, which is easily mistaken for one."""
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{RUN_CONFIG}"))
    if not inside:
        return "; give what `fedloom fed` or `fedloom dfl` wrote, <out_dir>/<exp_name>"
    return f"; the runs in it are {' '.join(inside[:8])}{' ...' if len(inside) > 8 else ''}"
