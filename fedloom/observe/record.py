"""A run's folder, read back: what was run, what came out, and where the adapters lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedloom.config import UserError
from fedloom.observe.checkpoint import latest_checkpoint
from fedloom.observe.metrics import SUMMARY_FILE, read_rows
from fedloom.parsing import RUN_CONFIG, RUN_RECORD


@dataclass(frozen=True)
class RunRecord:
    """What a run has left so far.

    Attributes:
        folder: The run's folder.
        options: Every option as resolved, by name.
        rows: The rows of metrics.jsonl, one per round, the first of round 0: before training.
        summary: The content of summary.json; empty until the run has ended.
        checkpoint: The newest checkpoint, a PEFT adapter; of peers a folder with ``peer-0001``, …, one for
            each. None before the first.
    """

    folder: Path
    options: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    checkpoint: Path | None

    def column(self, name: str) -> list[tuple[int, Any]]:
        """(round, value) of the rounds that have this metric, for a table or a plot."""
        return [(row["round"], row[name]) for row in self.rows if row.get(name) is not None]


def read_run(folder: str | Path) -> RunRecord:
    """Read a run's folder, of a run that has ended or of one that still goes on.

    Raises:
        UserError: The folder holds no run.
    """
    folder = Path(folder)
    if not (folder / RUN_CONFIG).is_file():
        raise UserError(f"{folder}: holds no run (no {RUN_CONFIG}); give the folder out_dir/exp_name of one")
    options = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    options.pop(RUN_RECORD, None)
    summary = folder / SUMMARY_FILE
    return RunRecord(
        folder=folder,
        options=options,
        rows=read_rows(folder),
        summary=json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
        checkpoint=latest_checkpoint(folder),
    )
