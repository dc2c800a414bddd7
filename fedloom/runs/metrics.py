"""What a run tells while it goes on, and at its end: metrics.jsonl, trackers, summary.json."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedloom.options.trackers import tracker_names
from fedloom.runs.files import write_atomically, writing
from fedloom.runs.rows import METRICS_FILE, SUMMARY_FILE, missing_rounds, read_rows, rows_until
from fedloom.runs.trackers import open_trackers

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
    cost = [name for name in ("epsilon",) if any(name in row for row in rows)]
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
