"""The only loop over rounds, for every regime: play, validate, write metrics, leave checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fedloom.config import UserError
from fedloom.federation.server import Diverged
from fedloom.observe.checkpoint import latest_checkpoint
from fedloom.observe.metrics import MetricsLog, read_rows, summary, write_summary
from fedloom.observe.progress import Progress
from fedloom.runtimes.group import ALONE, Group
from fedloom.torchrun import RankLost

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


@dataclass(frozen=True)
class _Voice:
    """Where metrics and words go: on rank 0 to files and the terminal, on others nowhere."""

    write: Callable[[Metrics], None]
    say: Callable[[str], None]


def drive(
    regime: Regime[S], pace: Pace, folder: Path, checkpoint: Path | None = None, group: Group = ALONE
) -> S:
    """Play rounds until there have been enough, or validation says stop.

    Args:
        regime: What a round is.
        pace: How many.
        folder: The run's folder.
        checkpoint: Where to go on from; None starts from the beginning.
        group: The run's processes; rank 0 alone writes.

    Raises:
        UserError: Nothing finite came of a round; the last good standing has been saved.
        RankLost: Another process has died; the last checkpoint stands.
        KeyboardInterrupt: After a checkpoint was left.
    """
    began = time.monotonic()
    now = group.together(lambda: regime.start() if checkpoint is None else regime.restore(checkpoint))
    done = regime.rounds_done
    with _voice(pace, folder, done(now) if checkpoint else None, group) as voice:
        try:
            if checkpoint is None:
                now, row = regime.validate(now, {"round": 0})
                voice.write(regime.answer(now, row) if pace.answers(0) else row)
            while done(now) < pace.rounds and not regime.stops(now):
                group.between_rounds()
                after, row = regime.play(now)
                if pace.validates(done(after)):
                    after, row = regime.validate(after, row)
                if pace.answers(done(after)):
                    row = regime.answer(after, row)
                voice.write(row)
                now = after  # not before its row is written: a checkpoint has all rows up to its round
                if done(now) % pace.save_every == 0:
                    regime.save(folder, now)
            if reason := regime.stops(now):
                voice.say(f"stopped: {reason}")
        except RankLost as lost:
            if regime.saves_alone:
                regime.save(folder, now)
            raise RankLost(f"round {done(now) + 1}: {lost}; {_how_to_go_on(folder)}", lost.tells) from lost
        except KeyboardInterrupt:
            voice.say(f"interrupted after round {done(now)}; --resume goes on from there")
            regime.save(folder, now)
            raise
        except Diverged as error:
            regime.save(folder, now)
            raise UserError(f"{error}; {_kept(folder)}. {regime.advice}") from error
        except Exception:
            # `now` is always the standing after a whole round; other ranks may be elsewhere.
            if group.size == 1 or regime.saves_alone:
                regime.save(folder, now)
            raise
        regime.save(folder, now)
    at_end = regime.at_end(now)
    if group.rank == 0:
        content = summary(read_rows(folder), wall_seconds=time.monotonic() - began)
        write_summary(folder, content | at_end)
    return now


@contextmanager
def _voice(pace: Pace, folder: Path, resumed: int | None, group: Group) -> Iterator[_Voice]:
    """A rank's voice; ``resumed`` are the rounds of the checkpoint that the run goes on from, if any."""
    if group.rank != 0:
        yield _Voice(write=lambda row: None, say=lambda words: None)
        return
    rows = [row for row in read_rows(folder) if resumed is not None and row["round"] <= resumed]
    sent = sum(row.get("bytes_up", 0) + row.get("bytes_down", 0) for row in rows)
    with (
        MetricsLog(folder, pace.report_to, resumed) as metrics,
        Progress(pace.rounds, done=resumed or 0, bytes_sent=sent) as progress,
    ):

        def write(row: Metrics) -> None:
            metrics.write(row)
            if row["round"] > 0:
                progress.update(row)

        yield _Voice(write, progress.say)


def _how_to_go_on(folder: Path) -> str:
    return f"{_kept(folder)}. Start the run again with --resume, with any number of ranks"


def _kept(folder: Path) -> str:
    last = latest_checkpoint(folder)
    return f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
