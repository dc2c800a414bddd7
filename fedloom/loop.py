"""The only loop over rounds, for every regime: play, validate, write metrics, leave checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fedloom.config import UserError
from fedloom.federation.server import Diverged
from fedloom.observe.checkpoint import latest_checkpoint
from fedloom.observe.metrics import MetricsLog, read_rows, summary, write_summary
from fedloom.observe.progress import Progress

S = TypeVar("S")
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Regime(Generic[S]):
    """What the loop needs to know of a regime; S is all that it carries from round to round.

    Attributes:
        start: The standing before the first round.
        restore: The standing that a checkpoint holds.
        rounds_done: Of a standing.
        play: One round: the new standing, and its row of metrics.
        validate: ``(standing, row) -> (standing, row with the validation's metrics)``.
        answer: ``(standing, row) -> row with the metrics of answers that the model writes itself``.
        stops: Why no further round is played, or None.
        save: Leaves a checkpoint in a run's folder, unless there is one of this round.
        at_end: Further content of summary.json.
        advice: What to do after a divergence, in a sentence.
    """

    start: Callable[[], S]
    restore: Callable[[Path], S]
    rounds_done: Callable[[S], int]
    play: Callable[[S], tuple[S, Metrics]]
    validate: Callable[[S, Metrics], tuple[S, Metrics]]
    answer: Callable[[S, Metrics], Metrics]
    stops: Callable[[S], str | None]
    save: Callable[[Path, S], None]
    at_end: Callable[[S], Metrics]
    advice: str


@dataclass(frozen=True)
class Pace:
    """How far and how often.

    Attributes:
        rounds: In all.
        validate_every: Rounds between validations; the last round is always validated.
        answer_every: Rounds between answers that the model writes itself, the last round included; 0: never.
        save_every: Rounds between checkpoints.
        report_to: Where metrics go beside metrics.jsonl.
    """

    rounds: int
    validate_every: int
    answer_every: int
    save_every: int
    report_to: Literal["tensorboard", "none"]

    def validates(self, round_: int) -> bool:
        """Whether this round ends with a validation."""
        return round_ % self.validate_every == 0 or round_ == self.rounds

    def answers(self, round_: int) -> bool:
        """Whether this round ends with answers that the model writes itself."""
        return self.answer_every > 0 and (round_ % self.answer_every == 0 or round_ == self.rounds)


def drive(regime: Regime[S], pace: Pace, folder: Path, checkpoint: Path | None = None) -> S:
    """Play rounds until there have been enough, or validation says stop.

    Args:
        regime: What a round is.
        pace: How many.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.

    Raises:
        UserError: Nothing finite came of a round; the last good standing has been saved.
        KeyboardInterrupt: After a checkpoint was left.
    """
    began = time.monotonic()
    now = regime.start() if checkpoint is None else regime.restore(checkpoint)
    done = regime.rounds_done
    rows = [row for row in read_rows(folder) if checkpoint and row["round"] <= done(now)]
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    with (
        MetricsLog(folder, pace.report_to, done(now) if checkpoint else None) as metrics,
        Progress(pace.rounds, done=done(now), bytes_sent=sent) as progress,
    ):
        try:
            if checkpoint is None:
                now, row = regime.validate(now, {"round": 0})
                metrics.write(regime.answer(now, row) if pace.answers(0) else row)
            while done(now) < pace.rounds and not regime.stops(now):
                now, row = regime.play(now)
                if pace.validates(done(now)):
                    now, row = regime.validate(now, row)
                if pace.answers(done(now)):
                    row = regime.answer(now, row)
                metrics.write(row)
                progress.update(row)
                if done(now) % pace.save_every == 0:
                    regime.save(folder, now)
            if reason := regime.stops(now):
                progress.say(f"stopped: {reason}")
        except KeyboardInterrupt:
            progress.say(f"interrupted after round {done(now)}; --resume goes on from there")
            raise
        except Diverged as error:
            regime.save(folder, now)
            raise UserError(f"{error}; {_kept(folder)}. {regime.advice}") from error
        finally:
            # Also when interrupted: `now` is always the standing after a whole round.
            regime.save(folder, now)
    content = summary(read_rows(folder), wall_seconds=time.monotonic() - began)
    write_summary(folder, content | regime.at_end(now))
    return now


def _kept(folder: Path) -> str:
    last = latest_checkpoint(folder)
    return f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
