"""Rows of metrics as they stand in a run's folder, read back and looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedloom.runs.reading import Damaged, read_mapping

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl; a last line that a killed run left half written is no row.

    Raises:
        Damaged: It cannot be read, or a line is no row; names the first.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise Damaged(path, error.strerror) from None
    return [_row(path, number, line) for number, line in enumerate(lines, start=1)]


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    way_out = "put a copy back, or remove that line: the run then says which rounds are missing"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"line {number}: {error}", way_out) from None
    if not isinstance(row, dict) or type(row.get("round")) is not int or not 0 <= row["round"] < 2**53:
        raise Damaged(path, f"line {number} is no row with a round", way_out)
    return row


def rows_until(rows: Iterable[dict[str, Any]], last: int) -> tuple[list[dict[str, Any]], str]:
    """A row per round, in order, up to a round; and what was wrong with them, "" where nothing was.

    Args:
        rows: As they stand in the file; of a round that stands there twice the last row counts.
        last: The last round that counts.
    """
    by_round: dict[int, dict[str, Any]] = {}
    twice = 0
    for row in rows:
        if row["round"] <= last:
            twice += row["round"] in by_round
            by_round[row["round"]] = row
    kept = [by_round[number] for number in sorted(by_round)]
    missing = missing_rounds(kept, last)
    remarks = [f"{twice} rows stood there twice and are kept once"] if twice else []
    if missing:
        remarks.append(f"rows of {missing} of the {last + 1} rounds up to {last} are missing")
    return kept, f"{METRICS_FILE}: {'; '.join(remarks)}" if remarks else ""


def missing_rounds(rows: Sequence[Mapping[str, Any]], last: int) -> int:
    """How many of the rounds from 0 to ``last`` have no row; one that a peer was not there for needs none."""
    skipped = sum(count for row in rows if type(count := row.get("rounds_missed")) is int)
    return max(0, last + 1 - len(rows) - skipped)


def seconds_spent(folder: Path) -> float:
    """Wall clock seconds that the parts of a run before this one took, as far as its files say."""
    try:
        ended = [read_mapping(folder / SUMMARY_FILE)]
    except Damaged:
        ended = []  # it is written anew at the end
    found = [record.get("wall_seconds") for record in [*read_rows(folder), *ended]]
    return max((s for s in found if isinstance(s, int | float) and math.isfinite(s)), default=0.0)
