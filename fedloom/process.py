"""A process: what it sets before it trains, or before it starts, and its place among those of torchrun."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fedloom.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count"


def prepare_process() -> None:
    """Keep freed memory in the process, on Linux with glibc; elsewhere nothing is done.

    Training frees and allocates activations of megabytes in every layer. By default glibc gives such memory
    back to the kernel at once, and most of the cost of the next tensor is then the page faults of its first
    touch. Measured on a round of SmolLM2-135M on a CPU: 2 to 8 % less time (docs/log.md).
    """
    if not _has_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    mallopt(_M_TOP_PAD, 64 << 20)


def prepared_environment() -> dict[str, str]:
    """This process's environment, and in it what glibc reads only when a process starts.

    It turns off the cache of small blocks that glibc keeps per thread. Blocks in it lie wherever they were
    used last, between activations too, and passes of different lengths then find no room between them: the
    heap grew by some 3 MB a pass (docs/log.md). A value that somebody has set stays.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if not _has_glibc() or _TUNABLE in tunables:
        return dict(os.environ)
    return os.environ | {_TUNABLES: ":".join(filter(None, [tunables, f"{_TUNABLE}=0"]))}


def restart_prepared() -> None:
    """Begin this process again, by the same command and under the same number, in `prepared_environment`.

    Nothing is done in a process that has it.
    """
    environment = prepared_environment()
    if environment != os.environ and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for circles of references within the block, which makes much that stays and little that goes.

    Python searches whenever it has made some hundred objects more than it gave back, every time more of them.
    Of a start-up on 60,000 examples that was a fifth (docs/log.md).
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """For a block in which a command imports what does its work, which is there until the process ends.

    So no later search for circles needs to look at it. Only for a process of our own: what else is there
    stays, too.
    """
    first = "torch" not in sys.modules
    with uncollected():
        yield
        if first:
            gc.freeze()


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank, size: Which of how many.
        local_rank, local_size: The same among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for the run."""
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; without torchrun it is alone.

    Raises:
        UserError: The environment names a place that there cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in environment for name in names):
        return Place()
    given = {name: environment[name] for name in names}
    given["LOCAL_WORLD_SIZE"] = environment.get("LOCAL_WORLD_SIZE", given["WORLD_SIZE"])
    if all(value.isdecimal() for value in given.values()):
        rank, size, local_rank, local_size = map(int, given.values())
        if rank < size and local_rank < local_size <= size:
            return Place(rank, size, local_rank, local_size)
    variables = ", ".join(f"{name}={value}" for name, value in given.items())
    raise UserError(
        f"environment: {variables} is no place in a run; start fedloom with torchrun, or unset these"
    )


class RankLost(UserError):
    """Another process of the run can no longer be reached.

    Attributes:
        tells: Whether this process is the one that says so.
    """

    def __init__(self, message: str, tells: bool):
        super().__init__(message)
        self.tells = tells


def tells(error: UserError) -> bool:
    """Whether this process prints a mistake, which all processes have noticed: one of each machine does."""
    if isinstance(error, RankLost):
        return error.tells
    return os.environ.get("LOCAL_RANK", "0") == "0"
