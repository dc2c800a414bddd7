"""What a process of fedloom sets before it trains."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1


def prepare_process() -> None:
    """Keep freed memory in the process, on Linux with glibc; elsewhere nothing is done.

    Training frees and allocates activations of megabytes in every layer. By default glibc gives such memory
    back to the kernel at once, and most of the cost of the next tensor is then the page faults of its first
    touch. Measured on a round of SmolLM2-135M on a CPU: 2 to 8 % less time (docs/log.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    mallopt(_M_TOP_PAD, 64 << 20)
