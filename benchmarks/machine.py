"""What the numbers were measured on: processor or GPU, versions, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

GEMM_SECONDS = 0.3
GEMM_MIN_REPEATS = 3


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Names and counts for the head of a table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {
        "cpu": cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name. Virtual machines often hide its model number, so that is given beside it."""
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.machine()
    parts = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(parts)})" if parts else name


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("torch", "transformers", "peft", "fedloom")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # fedloom may run from its source, uninstalled
        return "unknown"


def gemm_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, intermediate: int) -> float:
    """FLOP/s of a frozen layer's two products, ``x W`` forward and ``g Wᵀ`` backward; the median of many.

    They write into tensors made beforehand: this is the rate of the processor, not of the allocator.
    """
    weight = torch.full((hidden, intermediate), 0.5, device=device, dtype=dtype)
    x, grad_x = (torch.full((tokens, hidden), 0.5, device=device, dtype=dtype) for _ in range(2))
    y, grad_y = (torch.full((tokens, intermediate), 0.5, device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        torch.mm(x, weight, out=y)
        torch.mm(grad_y, weight.T, out=grad_x)

    seconds = _median_seconds(products, device)
    return 2 * 2 * tokens * hidden * intermediate / seconds


@torch.no_grad()
def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()  # the first call prepares kernels
    taken: list[float] = []
    while sum(taken) < GEMM_SECONDS or len(taken) < GEMM_MIN_REPEATS:
        taken.append(once())
    return statistics.median(taken)


def peak_resident_bytes() -> int | None:
    """Most resident memory that this process has had since its start, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def forget_peak() -> bool:
    """Let the peak count from now on; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
