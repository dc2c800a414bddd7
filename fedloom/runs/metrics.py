"""What a run tells while it goes on, and at its end: metrics.jsonl, trackers, summary.json; and back."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedloom.options.trackers import tracker_names
from fedloom.runs.files import write_atomically, writing
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runs.trackers import open_trackers

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
_PERSONAL = "personal_val_accuracy"
_ANSWERS = "val_answer_accuracy"


class MetricsLog:
    """One JSON object per round in metrics.jsonl, and the same names in TensorBoard and its like.

    There a number becomes a scalar; a list of at most 64 floats (one per peer, or per layer) becomes
    `name/0`, `name/1`, …; all else, such as a list of layer numbers, stands in metrics.jsonl only. With every
    validation the layer scores of all rounds become a picture in TensorBoard. A number that is not finite is
    written as null, since JSON has no word for it.
    """

    def __init__(self, folder: Path, report_to: str, resume_round: int | None = None) -> None:
        """Open the log of a run's folder.

        Args:
            folder: The run's folder.
            report_to: Where metrics go beside metrics.jsonl: names with commas between, or none.
            resume_round: Rounds done in the checkpoint that the run goes on from; rows of later rounds are
                cut off, since those rounds will come again. None starts an empty log.

        Attributes:
            rows: What stood in the log already, a row per round.
            remark: What was wrong with it, "" where nothing was.

        Raises:
            Damaged: A line is no row.
            UserError: A tracker does not begin.
            CannotWrite: The disk is full, or may not be written.
        """
        path = folder / METRICS_FILE
        self.rows: list[dict[str, Any]] = []
        self.remark = ""
        if resume_round is not None:
            self.rows, self.remark = rows_until(read_rows(folder), resume_round)
        write_atomically(path, "".join(_to_line(row) for row in self.rows))
        with writing(path):
            # Unbuffered, so that what could not be written does not come again when the file is closed.
            self._file = path.open("ab", buffering=0)
        self._path = path
        self._trackers = open_trackers(tracker_names(report_to), folder, resume_round, self.rows)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the metrics of one round; `row["round"]` is the number of rounds done.

        Raises:
            CannotWrite: The disk is full; the rows before this one stand.
        """
        whole = self._file.tell()
        with writing(self._path):
            try:
                line = memoryview(_to_line(row).encode("utf-8"))
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(whole)
                raise
        for tracker in self._trackers:
            tracker.write(row)

    def close(self, ended: bool = True) -> None:
        """Close the files; trackers are told whether the run came to its end."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close(ended)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(ended=kind is None)


def summary(rows: Sequence[Mapping[str, Any]], *, wall_seconds: float) -> dict[str, Any]:
    """Return what summary.json holds: final and best metrics, totals, and peak memory of this process.

    Args:
        rows: The rows of all rounds, as `read_rows` returns them.
        wall_seconds: Wall clock time of the run, of all its parts where it was resumed.
    """
    answered = [name for name in (_ANSWERS, _PERSONAL) if any(name in row for row in rows)]
    cost = [name for name in ("epsilon", "delta") if any(name in row for row in rows)]
    last = max((row["round"] for row in rows), default=0)
    missing = missing_rounds(rows, last)
    return {
        "rounds": last,
        **({"rounds_without_metrics": missing} if missing else {}),
        "final": {
            name: _last(rows, name) for name in ("train_loss", "val_accuracy", "val_loss", *answered, *cost)
        },
        "best": {
            **{name: _best(rows, name, 1) for name in ("val_accuracy", *answered)},
            "val_loss": _best(rows, "val_loss", -1),
        },
        "totals": {
            name: sum(row.get(name) or 0 for row in rows)
            for name in ("bytes_up", "bytes_down", "tokens", "seconds", "eval_seconds")
        },
        "wall_seconds": wall_seconds,
        **_peak_memory(),
    }


def write_summary(folder: Path, content: Mapping[str, Any]) -> None:
    """Write summary.json to a run's folder."""
    write_atomically(folder / SUMMARY_FILE, json.dumps(_finite(content), indent=2) + "\n")


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    known = [row for row in rows if row.get(name) is not None]
    return {"value": known[-1][name], "round": known[-1]["round"]} if known else None


def _best(rows: Sequence[Mapping[str, Any]], name: str, sign: int) -> dict[str, Any] | None:
    known = [row for row in rows if row.get(name) is not None and math.isfinite(row[name])]
    # max takes the first of equals: the earliest round that reached the best value.
    best = max(known, key=lambda row: sign * row[name], default=None)
    return {"value": best[name], "round": best["round"]} if best else None


def _peak_memory() -> dict[str, float]:
    """Return the largest memory this process held, in MiB; that of the GPU where one was used."""
    if sys.platform == "win32":
        import psutil

        peak_bytes = psutil.Process().memory_info().peak_wset
    else:
        import resource

        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = {"peak_memory_mib": peak_bytes / 2**20}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Put None in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
