"""Runs that follow each other in a process, and read data and base once as those of `fedloom compare`."""

import contextlib
from functools import partial
from unittest import mock

from fedloom.commands.dfl import run_dfl
from fedloom.commands.fed import run_fed
from fedloom.training.shared import Shared


@contextlib.contextmanager
def reading_once():
    """`fedloom fed` and `dfl` within take what the runs before read; to the bit the same (`test_shared`)."""
    shared = Shared()
    with (
        mock.patch("fedloom.commands.fed.run_fed", partial(run_fed, shared=shared)),
        mock.patch("fedloom.commands.dfl.run_dfl", partial(run_dfl, shared=shared)),
    ):
        yield
