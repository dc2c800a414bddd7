"""Programs that draw a run's metrics while it goes on, one file each, imported only where asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

_LONGEST_LIST = 64


@dataclass(frozen=True)
class Tracker:
    """One such program.

    Attributes:
        write: Is given the metrics of one round.
        close: Is called once at the end, with whether the run came to its end.
    """

    write: Callable[[Row], None]
    close: Callable[[bool], None]


def open_trackers(
    names: Sequence[str], folder: Path, resume_round: int | None, rows: Sequence[Row]
) -> list[Tracker]:
    """Begin to tell the named programs of a run, or go on where the run goes on.

    Args:
        names: As `report_to` has them.
        folder: The run's folder, with its `config.yaml`.
        resume_round: Rounds done in the checkpoint that the run goes on from; None for a new run.
        rows: What stands in `metrics.jsonl` already.

    Raises:
        UserError: A program does not begin.
        CannotWrite: The disk is full, or may not be written.
    """
    return [
        import_module(f"fedloom.runs.trackers.to_{name}").open_tracker(folder, resume_round, rows)
        for name in names
    ]


def forgiving(name: str, tracker: Tracker) -> Tracker:
    """The same, but what it raises ends nobody's run: it is warned of once, and no more is told to it.

    metrics.jsonl has everything, so that nothing is lost where a server is away for a while.
    """
    failed: list[str] = []

    def attempt(step: Callable[[], None]) -> None:
        if failed:
            return
        try:
            step()
        except Exception as error:  # another's program, another's network
            failed.append(name)
            message = " ".join(str(error).split())[:200]
            log.warning(
                "report_to: %s fails (%s: %s), so it is told no more; metrics.jsonl has every round",
                name,
                type(error).__name__,
                message,
            )

    return Tracker(
        lambda row: attempt(lambda: tracker.write(row)), lambda ended: attempt(lambda: tracker.close(ended))
    )


def scalars(row: Row) -> Iterable[tuple[str, float]]:
    """The numbers of a row under their names; of a list of at most 64 floats `name/0`, `name/1`, …"""
    for name, value in row.items():
        if isinstance(value, list) and 0 < len(value) <= _LONGEST_LIST:
            yield from ((f"{name}/{i}", item) for i, item in enumerate(value) if isinstance(item, float))
        elif isinstance(value, int | float) and name != "round":
            yield name, value
