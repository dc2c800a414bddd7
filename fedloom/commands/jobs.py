"""The runs of a comparison shared out among processes, each of which makes one after another.

A GPU that trains a small model, or a machine of many cores, is far from busy with one run. Results are those
of one process, but for how sums round: another number of threads, or passes of another size, add up in
another order.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fedloom.errors import UserError
from fedloom.process import prepare_process
from fedloom.runs.files import writing

Make = Callable[[int], None]
"""Makes the run of a number."""


class Job:
    """A process, and the number of the run that it makes; None: it waits for one."""

    def __init__(self, prepare: Callable[..., Make], given: Sequence[Any], log: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, prepare, given, log, threads), daemon=True)
        self.process.start()
        child.close()
        self.number: int | None = None

    def begin(self, number: int) -> None:
        """Let it make a run; of a process that has ended `outcome` tells."""
        self.number = number
        with suppress(ConnectionError):
            self.connection.send(number)

    def outcome(self) -> str | None:
        """What was wrong with the run that it has made; None: nothing.

        Raises:
            EOFError: The process has ended.
        """
        self.number = None
        answer: str | None = self.connection.recv()
        return answer


def share_out(
    prepare: Callable[..., Make], given: Sequence[Any], numbers: Sequence[int], jobs: int, folder: Path
) -> Iterator[tuple[int, bool, str | None]]:
    """Make runs in several processes.

    Args:
        prepare: Called once in every process with ``given``; makes what makes the run of a number. It is
            importable by its name.
        given: For ``prepare``; can be pickled.
        numbers: Of the runs, in the order in which they begin.
        jobs: How many processes.
        folder: Gets the processes' output, job-1.log and so on.

    Yields:
        ``(number, False, None)`` where a run begins, ``(number, True, what was wrong or None)`` where one
        ends.

    Raises:
        CannotWrite: The output of one cannot be written.
    """
    left, threads = deque(numbers), max(1, torch.get_num_threads() // jobs)
    names = [folder / f"job-{k}.log" for k in range(1, min(jobs, len(numbers)) + 1)]
    for log in names:  # a process that cannot open its own has nowhere to say so
        with writing(log, then="start again"):
            log.open("a").close()
    running = {log: Job(prepare, given, log, threads) for log in names}
    try:
        for job in running.values():
            yield left[0], False, None
            job.begin(left.popleft())
        while busy := {job.connection: log for log, job in running.items() if job.number is not None}:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                log = busy[connection]
                job, number = running[log], running[log].number
                assert number is not None
                try:
                    wrong = job.outcome()
                except (EOFError, ConnectionResetError):
                    job.process.join()
                    wrong = f"its process ended with status {job.process.exitcode}; see the end of {log}"
                    if left:
                        job = running[log] = Job(prepare, given, log, threads)
                yield number, True, wrong
                if left:
                    yield left[0], False, None
                    job.begin(left.popleft())
    finally:
        for job in running.values():
            job.connection.close()
            job.process.terminate()
        for job in running.values():
            job.process.join()


def _work(
    connection: Connection, prepare: Callable[..., Make], given: Sequence[Any], log: Path, threads: int
) -> None:
    """What a process does: runs, one after another, until nobody asks for more."""
    # Ctrl-C reaches every process of a terminal, and the parent ends its own by SIGTERM: a run asked twice
    # would break off the checkpoint that it leaves when it is asked once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    with suppress(EOFError, KeyboardInterrupt):
        make = prepare(*given)
        while True:
            number = connection.recv()
            try:
                make(number)
            except UserError as error:
                connection.send(str(error))
            else:
                connection.send(None)


def _end_with_parent() -> None:
    """Nobody waits for a run whose comparison was killed, and its folder is to be free for the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
