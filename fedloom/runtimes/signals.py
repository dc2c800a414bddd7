"""SIGTERM, as a scheduler or `kill` sends it, ends a run as Ctrl-C does: with a checkpoint and a message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`, once: a second one must not keep a checkpoint from being left.

    Nothing changes in a thread that Python gives no signals to, or where SIGTERM is ignored or has a handler
    already, such as that of a run with ranks.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # Who has taken the signal over within keeps it: ranks that have lost one have yet to say so.
        if signal.getsignal(signal.SIGTERM) in (end, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
