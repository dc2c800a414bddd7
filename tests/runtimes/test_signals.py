"""SIGTERM ends what runs within, once; whoever takes the signal over keeps it."""

import os
import signal

import pytest

from fedloom.runtimes.signals import Terminated, ended_by_sigterm


def test_it_ends_what_runs_within_and_is_no_matter_afterwards():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Terminated), ended_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while a checkpoint is left
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ranks_of_which_one_is_lost_can_still_say_so():
    """torchrun's signal to end may come before the message, which is told after all this."""
    heard = []
    try:
        with ended_by_sigterm():
            signal.signal(signal.SIGTERM, lambda *about: heard.append("term"))
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "else the next line ends this process"
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["term"]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
