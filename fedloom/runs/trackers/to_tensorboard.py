"""TensorBoard: events in the run's folder, with the layer scores as a picture."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedloom.runs.files import writing
from fedloom.runs.heatmap import heatmap
from fedloom.runs.trackers import Row, Tracker, scalars

_EVENTS = "events.out.tfevents"


def open_tracker(folder: Path, resume_round: int | None, rows: Sequence[Row]) -> Tracker:
    """Write events into a run's folder.

    Raises:
        CannotWrite: The disk is full, or may not be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    _silence_writer_thread()
    with writing(folder / _EVENTS):
        # TensorBoard drops what an earlier attempt wrote from this step on.
        writer = SummaryWriter(str(folder), purge_step=0 if resume_round is None else resume_round + 1)
    scored = [row for row in rows if "layer_scores" in row]

    def write(row: Row) -> None:
        with writing(folder / _EVENTS):
            for name, value in scalars(row):
                writer.add_scalar(name, value, global_step=row["round"])
            if "layer_scores" in row:
                scored.append(row)
            if scored and "val_loss" in row:
                picture = heatmap(
                    [past["layer_scores"] for past in scored], [past["selected_layers"] for past in scored]
                )
                writer.add_image("layer_scores", picture, global_step=row["round"], dataformats="HWC")
            writer.flush()

    def close(ended: bool) -> None:
        # What a full disk has kept from it was told when it was written.
        with suppress(OSError):
            writer.close()

    return Tracker(write, close)


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
