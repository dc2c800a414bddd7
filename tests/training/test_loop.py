"""The loop over rounds when a round comes to nothing, the disk is full, or files are not as they were."""

import json
import logging
import math
import signal
import time
from dataclasses import replace

import pytest
import torch
from full_disk import files_up_to

from fedloom.errors import UserError
from fedloom.federation.server import Diverged
from fedloom.runs.checkpoint import intact_checkpoint, load_state, save_checkpoint
from fedloom.runs.files import CannotWrite
from fedloom.runs.logfile import logging_to
from fedloom.runs.metrics import read_rows
from fedloom.runtimes.signals import Terminated
from fedloom.training import loop
from fedloom.training.loop import Intervals, RunSteps


def run_steps(play=lambda now: now, loss=lambda now: 1.0, numbers=4):
    """A run whose standing is its round: `play` may raise, `loss` is that of validation."""

    def save(folder, now):
        save_checkpoint(
            folder,
            now,
            write_adapter=lambda path: (path / "adapter_config.json").write_text("{}"),
            tensors={"w": torch.zeros(numbers)},
            state={"round": now},
        )

    return RunSteps(
        start=lambda: 0,
        restore=lambda path: load_state(path)[1]["round"],
        rounds_done=lambda now: now,
        play=lambda now: (play(now) + 1, {"round": now + 1, "train_loss": 1.0, "seconds": 0.1}),
        validate=lambda now, row: (now, row | {"val_loss": loss(now), "val_accuracy": 0.5}),
        answer=lambda now, row: row,
        stops=lambda now: None,
        save=lambda folder, now: save(folder, now) if now else None,
        saves_alone=True,
        at_end=lambda now: {},
        advice="Lower lr",
    )


def drive(folder, run, rounds=6, validate_every=1, save_every=2, resume=True, report_to="none"):
    folder.mkdir(exist_ok=True)
    intervals = Intervals(rounds, validate_every, 0, save_every, report_to)
    return loop.drive(run, intervals, folder, intact_checkpoint(folder) if resume else None)


def states(folder):
    return sorted(int(path.parent.name[6:]) for path in folder.glob("checkpoints/*/state"))


def rounds(folder):
    return [row["round"] for row in read_rows(folder)]


def raising(error, in_round):
    def play(now):
        if now + 1 == in_round:
            raise error
        return now

    return play


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_a_run_that_stops_before_its_last_round_is_validated_where_it_stops(folder):
    """As one whose privacy is spent: its state would else be saved and never looked at."""
    stops = replace(run_steps(), stops=lambda now: "spent" if now == 2 else None)
    drive(folder, stops, rounds=6, validate_every=6)
    assert [row["round"] for row in read_rows(folder) if "val_loss" in row] == [0, 2]


def test_after_a_divergence_a_standing_that_validates_is_kept(folder):
    with pytest.raises(UserError, match=r"round 6: x; the last good checkpoint is .*round-000005\. Lower lr"):
        drive(folder, run_steps(raising(Diverged("round 6: x"), 6)))
    assert states(folder) == [5] and drive(folder, run_steps()) == 6 and rounds(folder) == list(range(7))


@pytest.mark.parametrize("save_every, kept", [(1, 3), (2, 2), (4, None)])
def test_a_standing_that_is_finite_and_of_no_use_is_never_the_last_good_one(folder, save_every, kept):
    """From round 4 on validation is not finite, and from round 6 on nothing is."""
    ruined = run_steps(raising(Diverged("round 6: x"), 6), loss=lambda now: math.nan if now > 3 else 1.0)
    told = f"the last good checkpoint is .*round-00000{kept}" if kept else "there is no good checkpoint"
    with pytest.raises(UserError, match=told):
        drive(folder, ruined, save_every=save_every)
    assert states(folder) == ([kept] if kept else [])
    # What made it so is gone: the run goes on from there, as often as it is asked.
    assert drive(folder, run_steps()) == 6 and rounds(folder) == list(range(7))


def test_a_state_that_was_never_validated_is_proven_by_the_round_after_it(folder):
    def play(now):
        seen.append(states(folder))
        return now

    seen = []
    drive(folder, run_steps(play), validate_every=6, save_every=2)
    assert seen == [[], [], [2], [2], [2, 4], [4]]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_a_run_leaves_a_checkpoint(folder, stop, capsys):
    with pytest.raises(stop):
        drive(folder, run_steps(raising(stop(), 4)), save_every=9)
    assert states(folder) == [3] and drive(folder, run_steps()) == 6


def test_sigterm_leaves_a_checkpoint_and_a_message_in_one_process(folder, capsys):
    def play(now):
        if now == 3:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(9)
        return now

    with pytest.raises(Terminated):
        drive(folder, run_steps(play), save_every=9)
    assert states(folder) == [3] and "interrupted after round 3; --resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_wall_seconds_are_those_of_all_parts(folder):
    def slow(now):
        time.sleep(0.05)
        return now

    drive(folder, run_steps(slow), rounds=4)
    first = json.loads((folder / "summary.json").read_text())["wall_seconds"]
    drive(folder, run_steps(slow), rounds=6)
    seconds = [row["wall_seconds"] for row in read_rows(folder)]
    assert seconds == sorted(seconds) and first >= 0.2 and seconds[5] >= first + 0.05
    assert json.loads((folder / "summary.json").read_text())["wall_seconds"] >= first + 0.1


@pytest.mark.parametrize(
    "spoil, told, missing",
    [
        (lambda text: text * 2, "5 rows stood there twice", 0),
        (lambda text: "", "rows of 5 of the 5 rounds up to 4 are missing", 5),
        (lambda text: text.split("\n", 3)[-1], "rows of 3 of the 5 rounds", 3),
    ],
)
def test_rows_are_unique_and_complete_or_the_run_says_so(folder, capsys, spoil, told, missing):
    drive(folder, run_steps(), rounds=4)
    path = folder / "metrics.jsonl"
    path.write_text(spoil(path.read_text()))
    drive(folder, run_steps(), rounds=6)
    assert told in capsys.readouterr().err
    assert rounds(folder) == list(range(7))[missing:]
    assert json.loads((folder / "summary.json").read_text()).get("rounds_without_metrics", 0) == missing


@pytest.mark.parametrize(
    "numbers, size, file", [(4000, 9000, "tensors.safetensors"), (4, 600, "metrics.jsonl")]
)
def test_a_full_disk_is_one_message_and_nothing_is_lost(folder, numbers, size, file):
    drive(folder, run_steps(numbers=4), rounds=2)
    with (
        files_up_to(size),
        pytest.raises(CannotWrite, match=rf"{file} cannot be written \(File too large\); .* --resume$"),
    ):
        drive(folder, run_steps(numbers=numbers))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
    assert states(folder)[0] >= 2 and rounds(folder) == list(range(len(rounds(folder))))
    assert drive(folder, run_steps()) == 6 and rounds(folder) == list(range(7))


def test_a_full_disk_is_one_message_where_tensorboard_writes_too(folder, capsys):
    with files_up_to(800), pytest.raises(CannotWrite, match=r"events.* cannot be written"):
        drive(folder, run_steps(), rounds=100, report_to="tensorboard", save_every=99)
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_that_a_full_disk_ends_says_so_once(tmp_path, capsys):
    log = logging.getLogger("fedloom.x")
    with logging_to(tmp_path / "a.log"):
        log.info("before")
        with files_up_to(20):
            for _ in range(9):
                log.info("a line that there is no room for")
    said = capsys.readouterr().err
    assert said.count("a.log cannot be written (File too large)") == said.count("\n") == 1
    with pytest.raises(CannotWrite, match=r"choose another --log_path"), logging_to(tmp_path):
        pass
