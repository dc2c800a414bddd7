"""What a run tells: rows that survive a kill, TensorBoard with the same names, progress, summary."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from fedloom.runs.metrics import MetricsLog, read_rows, summary, write_summary
from fedloom.runs.progress import Progress
from fedloom.training.loop import Intervals


def row(round_: int, **values) -> dict:
    return {"round": round_, "train_loss": 1.0 / round_} | values


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_each_row_is_one_line_of_valid_json_at_once(tmp_path):
    with MetricsLog(tmp_path, "none") as log:
        log.write(row(1, selected_layers=[0, 3], val_loss=float("nan"), peer_train_loss=[float("inf"), 2.0]))
        # Before the log is closed: a killed run keeps its rows.
        [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {
        "round": 1,
        "train_loss": 1.0,
        "selected_layers": [0, 3],
        "val_loss": None,
        "peer_train_loss": [None, 2.0],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_has_the_same_names(tmp_path):
    with MetricsLog(tmp_path, "tensorboard") as log:
        log.write(row(1, bytes_up=10, selected_layers=[0, 3], peer_val_accuracy=[0.25, 0.5]))
        log.write(row(2, bytes_up=20, val_accuracy=None))
    assert scalars(tmp_path) == {
        "train_loss": [(1, 1.0), (2, 0.5)],
        "bytes_up": [(1, 10.0), (2, 20.0)],
        "peer_val_accuracy/0": [(1, 0.25)],
        "peer_val_accuracy/1": [(1, 0.5)],
    }


def test_resume_cuts_the_rounds_that_come_again(tmp_path):
    with MetricsLog(tmp_path, "tensorboard") as log:
        for round_ in range(1, 6):
            log.write(row(round_))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "train_lo')  # killed in the middle of a line
    with MetricsLog(tmp_path, "tensorboard", resume_round=3) as log:
        assert [r["round"] for r in read_rows(tmp_path)] == [1, 2, 3]
        log.write(row(4, train_loss=9.0))
    assert [(r["round"], r["train_loss"]) for r in read_rows(tmp_path)][2:] == [(3, 1 / 3), (4, 9.0)]
    assert scalars(tmp_path)["train_loss"] == [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 9.0)]


def test_without_a_checkpoint_the_log_starts_empty(tmp_path):
    with MetricsLog(tmp_path, "none") as log:
        log.write(row(1))
    with MetricsLog(tmp_path, "none") as log:
        log.write(row(1, train_loss=7.0))
    assert [r["train_loss"] for r in read_rows(tmp_path)] == [7.0]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_rows_survive_a_kill(tmp_path):
    code = (
        "import os, signal, sys, pathlib\n"
        "from fedloom.runs.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]), 'none')\n"
        "log.write({'round': 1})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert read_rows(tmp_path) == [{"round": 1}]


def test_summary_of_final_best_and_totals(tmp_path):
    rows = [
        row(1, val_accuracy=0.5, val_loss=2.0, bytes_up=10, bytes_down=1, tokens=100, seconds=1.5),
        row(2, val_accuracy=0.75, val_loss=1.0, bytes_up=10, bytes_down=1, tokens=100, seconds=1.5),
        row(3, val_accuracy=0.75, val_loss=None, bytes_up=10, bytes_down=1, tokens=90, eval_seconds=0.5),
        row(4, val_accuracy=None, bytes_up=10, bytes_down=1, tokens=90, seconds=1.0),
    ]
    content = summary(rows, wall_seconds=12.0)
    assert content["rounds"] == 4
    assert content["final"] == {
        "train_loss": {"value": 0.25, "round": 4},
        "val_accuracy": {"value": 0.75, "round": 3},
        "val_loss": {"value": 1.0, "round": 2},
    }
    # The earliest round that reached the best value.
    assert content["best"]["val_accuracy"] == {"value": 0.75, "round": 2}
    assert content["best"]["val_loss"] == {"value": 1.0, "round": 2}
    assert content["totals"] == {
        "bytes_up": 40,
        "bytes_down": 4,
        "tokens": 380,
        "seconds": 4.0,
        "eval_seconds": 0.5,
    }
    assert content["wall_seconds"] == 12.0
    assert 10 < content["peak_memory_mib"] < 1e6  # a Python process, in MiB
    write_summary(tmp_path, content)
    assert json.loads((tmp_path / "summary.json").read_text()) == content


def test_summary_of_a_run_that_stopped_before_its_first_round():
    content = summary([], wall_seconds=0.1)
    assert content["rounds"] == 0 and content["final"]["val_accuracy"] is None


def shown(*, terminal: bool, quiet: bool = False, rounds: int = 4, width: int = 120) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    with Progress(rounds, quiet=quiet, console=console, seconds_between_lines=3600.0) as progress:
        for i in range(1, rounds + 1):
            accuracy = 0.5 if i == 2 else None
            progress.update(
                row(i, val_accuracy=accuracy, bytes_up=1500, bytes_down=500, tokens=300, seconds=0.5)
            )
        progress.say("saved in [here]")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_for_first_validated_and_last_round():
    lines = shown(terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "round 1/4",
        "round 2/4",
        "round 4/4",
        "saved in [here]",
    ]
    for part in ("loss 0.2500", "val acc 50.0%", "600 tokens/s", "sent 8.0 kB", "0:00 left"):
        assert part in lines[2]
    assert "val acc" not in lines[0]


def test_a_live_line_on_a_terminal():
    text = shown(terminal=True)
    assert "4/4" in text and "loss 0.2500" in text and "saved in [here]" in text


@pytest.mark.parametrize(
    ("width", "validation", "live"),
    [
        (
            120,
            "round 2/4  loss 0.5000  val acc 50.0%  600 tokens/s  sent 4.0 kB  0:00 left",
            "round 4/4 ━━━━━━━━━━━━━━━━━━━━ loss 0.2500  val acc 50.0%  600 tokens/s  sent 8.0 kB  0:00 left",
        ),
        (
            80,
            "round 2/4  loss 0.5000  val acc 50.0%  600 tokens/s  sent 4.0 kB  0:00 left",
            "round 4/4 ━━━━━━━━━━ loss 0.2500  val acc 50.0%  sent 8.0 kB  0:00 left",
        ),
        (
            60,
            "round 2/4  loss 0.5000  val acc 50.0%  0:00 left",
            "round 4/4 ━━━━━━━━━━ loss 0.2500  val acc 50.0%  0:00 left",
        ),
        (
            40,
            "round 2/4  val acc 50.0%  0:00 left",
            "round 4/4 ━━━━━ val acc 50.0%  0:00 left",
        ),
    ],
)
def test_lines_of_validations_stay_on_a_terminal_and_no_line_is_wider(width, validation, live):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True, width=width))
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines()]
    assert lines.count(validation) == 1, lines
    assert lines[-1] == live, lines
    assert max(map(len, lines)) <= width


def test_quiet_shows_nothing():
    assert shown(terminal=False, quiet=True) == "" and shown(terminal=True, quiet=True) == ""


def test_time_left_counts_rounds_like_the_latest_and_the_validations_to_come(monkeypatch):
    """Validation before training took 40 s and the first round 9 s; the others take 3 s."""
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    clock = [0.0]
    monkeypatch.setattr("fedloom.runs.progress.time.monotonic", lambda: clock[-1])
    intervals = Intervals(rounds=20, validate_every=3, answer_every=0, save_every=3, report_to="none")
    with Progress(20, console=console, validations_after=intervals.validations_after) as progress:
        for seconds, values in [
            (40.0, {"round": 0, "eval_seconds": 40.0}),
            (49.0, row(1)),
            (52.0, row(2)),
            (65.0, row(3, val_accuracy=0.5, eval_seconds=10.0)),
        ]:
            clock.append(seconds)
            progress.update(values)
    assert isinstance(console.file, io.StringIO)
    left = [line.split("  ")[-1] for line in console.file.getvalue().splitlines()]
    # 19 rounds of 9 s and 7 validations of 40 s; 18 of 3 s and 7; 17 of 3 s and 6 validations of 25 s.
    assert left == ["7:31 left", "5:34 left", "3:21 left"]


def test_time_left_follows_a_machine_that_others_begin_to_use(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    now = [0.0]
    monkeypatch.setattr("fedloom.runs.progress.time.monotonic", lambda: now[-1])
    with Progress(30, console=console) as progress:
        for round_, seconds in enumerate([3.0] * 10 + [9.0] * 10, start=1):
            now.append(now[-1] + seconds)
            progress.update(row(round_))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-1].endswith("1:30 left")


@pytest.mark.parametrize("rounds, every", [(20, 3), (21, 3), (5, 9), (1, 1)])
def test_validations_to_come(rounds, every):
    intervals = Intervals(
        rounds=rounds, validate_every=every, answer_every=0, save_every=every, report_to="none"
    )
    for round_ in range(rounds + 1):
        to_come = [later for later in range(round_ + 1, rounds + 1) if intervals.validates(later)]
        assert intervals.validations_after(round_) == len(to_come)


def test_a_resumed_run_goes_on_counting():
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    with Progress(9, done=5, bytes_sent=1000, console=console) as progress:
        progress.update(row(6, bytes_up=1000, bytes_down=0))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith("round 6/9  loss 0.1667  sent 2.0 kB")
