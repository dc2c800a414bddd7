"""What a process of fedloom sets before it trains, and before it starts at all."""

import ctypes
import os
import platform
import sys

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


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
