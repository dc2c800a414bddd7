"""The only loop over rounds, for every kind of run: play, validate, write metrics, leave checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedloom.errors import UserError
from fedloom.federation.server import Diverged
from fedloom.process import RankLost
from fedloom.runs.checkpoint import (
    drop_older_states,
    drop_unproven_states,
    latest_checkpoint,
    oldest_state,
)
from fedloom.runs.files import CannotWrite
from fedloom.runs.metrics import MetricsLog, read_rows, seconds_spent, summary, write_summary
from fedloom.runs.progress import Progress
from fedloom.runtimes.group import ALONE, Group
from fedloom.runtimes.signals import ended_by_sigterm

S = TypeVar("S")
Metrics = dict[str, Any]
Callback = Callable[[Metrics], None]
"""Is given a row of metrics."""


@dataclass(frozen=True)
class RunSteps(Generic[S]):
    """What the loop needs to know of a kind of run; S is all that it carries from round to round.

    Attributes:
        start: The progress before the first round.
        restore: The progress that a checkpoint holds.
        rounds_done: Of some progress.
        play: One round: the new progress, and its row of metrics.
        validate: ``(progress, row) -> (progress, row with the validation's metrics)``.
        answer: ``(progress, row) -> row with the metrics of answers that the model writes itself``.
        stops: Why no further round is played, or None.
        save: Leaves a checkpoint in a run's folder, unless there is one of this round.
        saves_alone: Whether rank 0 has all that a checkpoint holds; else all ranks save together.
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
    saves_alone: bool
    at_end: Callable[[S], Metrics]
    advice: str


@dataclass(frozen=True)
class Intervals:
    """How far and how often.

    Attributes:
        rounds: In all.
        validate_every: Rounds between validations; the last round is always validated.
        answer_every: Rounds between answers that the model writes itself, the last round included; 0: never.
        save_every: Rounds between checkpoints.
        report_to: Where metrics go beside metrics.jsonl: names with commas between, or none.
        on_round: Is given the metrics of every round, a copy of its row, once they are written.
        on_validation: Is given those of every validation, round 0 included.
    """

    rounds: int
    validate_every: int
    answer_every: int
    save_every: int
    report_to: str
    on_round: Callback | None = None
    on_validation: Callback | None = None

    def validates(self, round_: int) -> bool:
        """Whether this round ends with a validation."""
        return round_ % self.validate_every == 0 or round_ == self.rounds

    def validations_after(self, round_: int) -> int:
        """How many rounds after this one end with a validation."""
        regular = self.rounds // self.validate_every - round_ // self.validate_every
        return regular + (self.rounds % self.validate_every > 0 and round_ < self.rounds)

    def answers(self, round_: int) -> bool:
        """Whether this round ends with answers that the model writes itself."""
        return self.answer_every > 0 and (round_ % self.answer_every == 0 or round_ == self.rounds)


@dataclass(frozen=True)
class _Output:
    """Where metrics and words go: on rank 0 to files and the terminal, on others nowhere."""

    write: Callable[[Metrics], None]
    say: Callable[[str], None]


def drive(
    run_steps: RunSteps[S],
    intervals: Intervals,
    folder: Path,
    checkpoint: Path | None = None,
    group: Group = ALONE,
) -> S:
    """Play rounds until there have been enough, or validation says stop.

    Args:
        run_steps: What a round is.
        intervals: How many.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
        group: The run's processes; rank 0 alone writes.

    Raises:
        UserError: Nothing finite came of a round; the last good progress has been saved.
        CannotWrite: The disk is full, or may not be written; the last checkpoint stands.
        RankLost: Another process has died; the last checkpoint stands.
        KeyboardInterrupt: After a checkpoint was left.
    """
    began = time.monotonic() - (seconds_spent(folder) if checkpoint and group.rank == 0 else 0.0)
    now = group.together(lambda: run_steps.start() if checkpoint is None else run_steps.restore(checkpoint))
    done = run_steps.rounds_done
    # The last round whose progress has proven itself; of a run that goes on, as its checkpoints have it.
    proven, pending = oldest_state(folder) if checkpoint else 0, True
    with (
        ended_by_sigterm(),
        _output(intervals, folder, done(now) if checkpoint else None, began, group) as output,
    ):
        try:
            if checkpoint is None:
                now, row = run_steps.validate(now, {"round": 0})
                output.write(run_steps.answer(now, row) if intervals.answers(0) else row)
            while done(now) < intervals.rounds and not run_steps.stops(now):
                group.between_rounds()
                after, row = run_steps.play(now)
                # A budget may be spent before the last round: what came of it is validated all the same.
                ends = run_steps.stops(after) is not None
                if ends or intervals.validates(done(after)):
                    after, row = run_steps.validate(after, row)
                if intervals.answers(done(after)) or (ends and intervals.answer_every > 0):
                    row = run_steps.answer(after, row)
                output.write(row)
                # Not before its row is written: a checkpoint has all rows up to its round.
                before, now = done(now), after
                if done(now) % intervals.save_every == 0:
                    run_steps.save(folder, now)
                    pending = True  # its state has not replaced the one before
                if _sound(row):
                    proven = done(now) if "val_loss" in row else before
                if pending and _sound(row) and group.rank == 0:
                    drop_older_states(folder, proven)
                    pending = proven < done(now)
            if reason := run_steps.stops(now):
                output.say(f"stopped: {reason}")
        except RankLost as lost:
            if run_steps.saves_alone:
                run_steps.save(folder, now)
            raise RankLost(f"round {done(now) + 1}: {lost}; {_how_to_go_on(folder)}", lost.tells) from lost
        except (KeyboardInterrupt, SystemExit):
            run_steps.save(folder, now)
            output.say(f"interrupted after round {done(now)}; --resume goes on from there")
            raise
        except Diverged as error:
            _keep_what_is_sound(run_steps, now, proven, folder, group)
            raise UserError(f"{error}; {_kept(folder)}. {run_steps.advice}") from error
        except Exception:
            # `now` is always the progress after a whole round; other ranks may be elsewhere.
            if group.size == 1 or run_steps.saves_alone:
                with suppress(CannotWrite):  # the disk is full, perhaps: what happened first is told
                    run_steps.save(folder, now)
            raise
        run_steps.save(folder, now)
    at_end = run_steps.at_end(now)
    if group.rank == 0:
        content = summary(read_rows(folder), wall_seconds=time.monotonic() - began)
        write_summary(folder, content | at_end)
    return now


def _sound(row: Metrics) -> bool:
    """Whether a round's numbers show that what it began from, and what it was validated with, is of use."""
    return not row.get("peers_left_out") and math.isfinite(row.get("val_loss", 0.0))


def _keep_what_is_sound(run_steps: RunSteps[S], now: S, proven: int, folder: Path, group: Group) -> None:
    """After a divergence: leave a checkpoint of where the run stands, or of nothing that leads there again.

    Progress may be finite and of no use, since large numbers become infinite on their way through the
    model. Validation shows it.
    """
    round_ = run_steps.rounds_done(now)
    _, row = run_steps.validate(now, {"round": round_})
    if _sound(row):
        run_steps.save(folder, now)
    proven = round_ if _sound(row) else min(proven, round_ - 1)
    if group.rank == 0:
        drop_older_states(folder, proven)
        drop_unproven_states(folder, proven)


@contextmanager
def _output(
    intervals: Intervals, folder: Path, resumed: int | None, began: float, group: Group
) -> Iterator[_Output]:
    """A rank's voice.

    Args:
        intervals: How many rounds there are.
        folder: The run's folder.
        resumed: The rounds of the checkpoint that the run goes on from, if any.
        began: When the run would have begun on the monotonic clock, had it never been stopped.
        group: The run's processes.
    """
    if group.rank != 0:
        yield _Output(write=lambda row: None, say=lambda words: None)
        return
    with MetricsLog(folder, intervals.report_to, resumed) as metrics:
        sent = sum((row.get("bytes_up") or 0) + (row.get("bytes_down") or 0) for row in metrics.rows)
        with Progress(
            intervals.rounds,
            done=resumed or 0,
            bytes_sent=sent,
            validations_after=intervals.validations_after,
        ) as progress:

            def write(row: Metrics) -> None:
                row = row | {"wall_seconds": time.monotonic() - began}
                metrics.write(row)
                progress.update(row)
                if intervals.on_round and row["round"] > 0:
                    intervals.on_round(dict(row))
                if intervals.on_validation and "val_loss" in row:
                    intervals.on_validation(dict(row))

            if metrics.remark:
                progress.say(metrics.remark)
            yield _Output(write, progress.say)


def _how_to_go_on(folder: Path) -> str:
    return f"{_kept(folder)}. Start the run again with --resume, with any number of ranks"


def _kept(folder: Path) -> str:
    last = latest_checkpoint(folder)
    return f"the last good checkpoint is {last}" if last else "there is no good checkpoint"
