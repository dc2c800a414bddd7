"""Starts `fedloom` in processes for tests; torch is loaded once, in a process that all are forked of."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["fedloom.training.fed", "fedloom.training.dfl", "peft", "tiny"]
CONTEXT.set_forkserver_preload(PRELOADED)


def begin(log: Path) -> None:
    """Once at the start of a forked process: all that it says from now on goes into a file."""
    import torch

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # As many threads as in the tests' own process: another number adds up in another order.
    torch.set_num_threads(1)
    # As in the tests' own process: a process that is killed loses nothing that was written.
    os.fsync = os.fstat


def _fedloom(words, log):
    """What a process does: the command."""
    begin(log)
    from fedloom.commands.cli import main

    # Where the tests themselves run in the background, SIGINT is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(words))


def start(words, log: Path):
    """A process with a `fedloom` command; its exit status is that of the command."""
    process = CONTEXT.Process(target=_fedloom, args=(words, str(log)), daemon=True)
    process.start()
    return process


def rows_written(folder: Path) -> int:
    """How many whole rows a run's metrics have by now."""
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_rows(folder: Path, count: int, is_alive, seconds: float = 280) -> None:
    """Until a run has written so many rows."""
    deadline = time.monotonic() + seconds
    while rows_written(folder) < count:
        assert is_alive(), "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
