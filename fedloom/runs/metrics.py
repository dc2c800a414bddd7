"""What a run tells while it goes on, and at its end: metrics.jsonl, TensorBoard, summary.json."""

import json
import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from fedloom.runs.files import write_atomically, writing
from fedloom.runs.heatmap import heatmap
from fedloom.runs.rows import METRICS_FILE, SUMMARY_FILE, missing_rounds, read_rows, rows_until

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EVENTS = "events.out.tfevents"
_LONGEST_LIST = 64
_PERSONAL = "personal_val_accuracy"
_ANSWERS = "val_answer_accuracy"


class MetricsLog:
    """One JSON object per round in metrics.jsonl, and the same names in TensorBoard.

    A number becomes a TensorBoard scalar; a list of at most 64 floats (one per peer, or per layer) becomes
    `name/0`, `name/1`, …; all else, such as a list of layer numbers, stands in metrics.jsonl only. With every
    validation the layer scores of all rounds become a picture. A number that is not finite is written as
    null, since JSON has no word for it.
    """

    def __init__(
        self, folder: Path, report_to: Literal["tensorboard", "none"], resume_round: int | None = None
    ) -> None:
        """Open the log of a run's folder.

        Args:
            folder: The run's folder.
            report_to: Where metrics go beside metrics.jsonl.
            resume_round: Rounds done in the checkpoint that the run goes on from; rows of later rounds are
                cut off, since those rounds will come again. None starts an empty log.

        Attributes:
            rows: What stood in the log already, a row per round.
            remark: What was wrong with it, "" where nothing was.

        Raises:
            Damaged: A line is no row.
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
        self._tensorboard = _open_tensorboard(folder, resume_round) if report_to == "tensorboard" else None
        self._scored: list[Mapping[str, Any]] = [row for row in self.rows if "layer_scores" in row]

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
        if self._tensorboard is not None:
            with writing(self._path.parent / _EVENTS):
                for name, value in _scalars(row):
                    self._tensorboard.add_scalar(name, value, global_step=row["round"])
                self._draw(self._tensorboard, row)
                self._tensorboard.flush()

    def _draw(self, tensorboard: "SummaryWriter", row: Mapping[str, Any]) -> None:
        if "layer_scores" in row:
            self._scored.append(row)
        if self._scored and "val_loss" in row:
            picture = heatmap(
                [past["layer_scores"] for past in self._scored],
                [past["selected_layers"] for past in self._scored],
            )
            tensorboard.add_image("layer_scores", picture, global_step=row["round"], dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            # What a full disk has kept from it was told when it was written.
            with suppress(OSError):
                self._tensorboard.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def summary(rows: Sequence[Mapping[str, Any]], *, wall_seconds: float) -> dict[str, Any]:
    """Return what summary.json holds: final and best metrics, totals, and peak memory of this process.

    Args:
        rows: The rows of all rounds, as `read_rows` returns them.
        wall_seconds: Wall clock time of the run, of all its parts where it was resumed.
    """
    answered = [name for name in (_ANSWERS, _PERSONAL) if any(name in row for row in rows)]
    last = max((row["round"] for row in rows), default=0)
    missing = missing_rounds(rows, last)
    return {
        "rounds": last,
        **({"rounds_without_metrics": missing} if missing else {}),
        "final": {name: _last(rows, name) for name in ("train_loss", "val_accuracy", "val_loss", *answered)},
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


def _scalars(row: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, list) and 0 < len(value) <= _LONGEST_LIST:
            yield from ((f"{name}/{i}", item) for i, item in enumerate(value) if isinstance(item, float))
        elif isinstance(value, int | float) and name != "round":
            yield name, value


def _open_tensorboard(folder: Path, resume_round: int | None) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    _silence_writer_thread()
    with writing(folder / _EVENTS):
        # TensorBoard drops what an earlier attempt wrote from this step on.
        return SummaryWriter(str(folder), purge_step=0 if resume_round is None else resume_round + 1)


def _silence_writer_thread() -> None:
    """Keep TensorBoard's own thread from printing a traceback: it hands its errors to the next call too."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    if getattr(before, "of_tensorboard", False):
        return
    hook.of_tensorboard = True  # type: ignore[attr-defined]
    threading.excepthook = hook
