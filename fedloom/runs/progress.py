"""How far a run is: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from statistics import mean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as LiveProgress

_LATEST = 8
"""Rounds that the time left is judged by."""

_NARROW = 90
"""Columns of a terminal below which the bar is short."""

_FIRST_TO_GO = ("speed", "sent", "loss")
"""What a line leaves out where it would not fit, in this order."""


class Progress:
    """Shows rounds, training loss, validation accuracy, tokens per second, bytes sent and time left.

    Use it as a context manager. On a terminal there is a live line, above it one for each validation, as much
    in them as there is room for. Elsewhere there is a line for the first and the last round, for each
    validation, and otherwise one every few seconds.
    """

    def __init__(
        self,
        total_rounds: int,
        *,
        done: int = 0,
        bytes_sent: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        seconds_between_lines: float = 2.0,
        validations_after: Callable[[int], int] = lambda round_: 0,
    ) -> None:
        """Prepare the display.

        Args:
            total_rounds: Rounds of the whole run.
            done: Rounds that an earlier part of the run did.
            bytes_sent: Bytes up and down of those rounds.
            quiet: Whether to show nothing at all, notes included.
            console: Where to write; by default stderr, so that stdout keeps the results.
            seconds_between_lines: Shortest time between two plain lines that report no validation.
            validations_after: How many validations are still to come after a round.
        """
        self._total, self._before, self._bytes = total_rounds, done, bytes_sent
        self._quiet = quiet
        self._console = console or Console(stderr=True)
        self._pause = seconds_between_lines
        self._val_accuracy: float | None = None
        self._began = self._spoke = 0.0
        self._validations_after = validations_after
        self._rounds: list[float] = []  # seconds of each round of this process, validation aside
        self._validations: list[float] = []
        self._live: LiveProgress | None = None
        self._bar = 20 if self._console.width >= _NARROW else 10

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if self._console.is_terminal and not self._quiet:
            self._live = LiveProgress(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(bar_width=self._bar),
                TextColumn("{task.description}", markup=False),
                console=self._console,
            )
            first = "" if self._before else "validating before training"
            self._task = self._live.add_task(first, total=self._total, completed=self._before)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show the metrics of a round, as they go to metrics.jsonl; of round 0 only its time is kept."""
        self._keep_time(row)
        if row["round"] == 0:
            return
        validated = row.get("val_accuracy") is not None
        if validated:
            self._val_accuracy = row["val_accuracy"]
        self._bytes += (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
        if self._quiet:
            return
        done = f"round {row['round']}/{self._total}"
        if self._live is not None:
            width = self._console.width
            room = width - len(f"round {self._total}/{self._total}  ") - self._bar
            self._live.update(self._task, completed=row["round"], description=self._status(row, room))
            if validated:
                self.say(f"{done}  {self._status(row, width - len(done) - 2)}")
            return
        now = time.monotonic()
        is_edge = row["round"] in (self._before + 1, self._total)
        if validated or is_edge or now - self._spoke >= self._pause:
            self._spoke = now
            self.say(f"{done}  {self._status(row)}")

    def say(self, message: str) -> None:
        """Print a note, above the live line where there is one."""
        if not self._quiet:
            self._console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _status(self, row: Mapping[str, Any], room: int | None = None) -> str:
        """A round's numbers, as many of them as fit into so many columns."""
        parts = {}
        if row.get("train_loss") is not None:
            parts["loss"] = f"loss {row['train_loss']:.4f}"
        if self._val_accuracy is not None:
            parts["accuracy"] = f"val acc {self._val_accuracy:.1%}"
        if row.get("tokens") and row.get("seconds"):
            parts["speed"] = f"{row['tokens'] / row['seconds']:,.0f} tokens/s"
        if row.get("epsilon") is not None:
            parts["epsilon"] = f"epsilon {row['epsilon']:.3g}"
        parts["sent"] = f"sent {decimal(self._bytes)}"
        parts["left"] = f"{clock(self._seconds_left(row['round']))} left"
        for name in _FIRST_TO_GO:
            if room is not None and len("  ".join(parts.values())) > room:
                parts.pop(name, None)
        return "  ".join(parts.values())

    def _keep_time(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        validation = row.get("eval_seconds") or 0.0
        if validation:
            self._validations.append(validation)
        if row["round"] > 0:
            self._rounds.append(max(now - self._began - validation, 0.0))
        self._began = now

    def _seconds_left(self, round_: int) -> float:
        # The first round warms the machine up: it counts only as long as it is alone. The latest ones alone
        # say what rounds take now: others may use the machine, too.
        rounds = (self._rounds[1:] or self._rounds)[-_LATEST:]
        left = mean(rounds) * (self._total - round_)
        return left + mean(self._validations or [0.0]) * self._validations_after(round_)


def clock(seconds: float) -> str:
    """A time as minutes and seconds, from an hour on with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
