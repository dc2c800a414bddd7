"""The dtype of the frozen base model: never slower than float32 by choice."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PretrainedConfig

from fedloom.errors import UserError
from fedloom.model.structure import size

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

MIN_SPEEDUP = 1.2
PROBE_TOKENS = 1024
PROBE_SECONDS = 0.5
PROBE_REPEATS = 15
# Larger matrices do not change the ratio, only the time of the probe.
PROBE_MAX_HIDDEN = 1024
PROBE_MAX_INTERMEDIATE = 4096
NATIVE_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Processor flags: x86 as Linux and torch name them, and ARM's `bf16`."""


def choose_dtype(dtype: str, device: torch.device, model_config: PretrainedConfig) -> torch.dtype:
    """The dtype of the frozen base.

    Any name but `auto` is taken as it is. `auto` means:

    - CUDA: bfloat16 where the GPU has it; else float16 for weights stored as float16, which were made for its
      range; else float32.
    - CPU: bfloat16 where the processor has instructions for it and a probe of at most about half a second,
      run once per process, finds products of the model's sizes at least 1.2 times faster than in float32.
    - Anything else: float32.

    Raises:
        UserError: `dtype` is none of the names in `DTYPES`, nor `auto`.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UserError(f"dtype {dtype!r}: must be one of auto, {', '.join(DTYPES)}.")
    if device.type == "cuda":
        chosen = _cuda_dtype(device, model_config)
        logger.info("dtype auto: %s on %s", chosen, torch.cuda.get_device_name(device))
        return chosen
    if device.type != "cpu":
        return torch.float32
    return _cpu_dtype(*_probe_sizes(model_config))


def _cuda_dtype(device: torch.device, model_config: PretrainedConfig) -> torch.dtype:
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
    stored = getattr(model_config, "dtype", None)
    return torch.float16 if stored in (torch.float16, "float16") else torch.float32


def _cpu_dtype(hidden: int, intermediate: int) -> torch.dtype:
    if not has_native_bf16():
        logger.info("dtype auto: float32, the processor has no bfloat16 matrix instructions")
        return torch.float32
    speedup = bf16_speedup(hidden, intermediate)
    chosen = torch.bfloat16 if speedup >= MIN_SPEEDUP else torch.float32
    logger.info(
        "dtype auto: %s, products of %d tokens by %d x %d are %.2f times as fast in bfloat16 (needed: %.1f)",
        chosen,
        PROBE_TOKENS,
        hidden,
        intermediate,
        speedup,
        MIN_SPEEDUP,
    )
    return chosen


def _probe_sizes(model_config: PretrainedConfig) -> tuple[int, int]:
    hidden = size(model_config, "hidden_size", PROBE_MAX_HIDDEN)
    intermediate = size(model_config, "intermediate_size", 4 * hidden)
    return min(hidden, PROBE_MAX_HIDDEN), min(intermediate, PROBE_MAX_INTERMEDIATE)


def has_native_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 matrices itself; elsewhere it is emulated and slow."""
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        flag_lines = (line for line in lines if line.lower().startswith(("flags", "features")))
        return any(not NATIVE_BF16_FLAGS.isdisjoint(line.split()) for line in flag_lines)
    # Elsewhere torch knows; the function is newer than the oldest torch that will do.
    capabilities: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    return any(capabilities().get(flag) for flag in NATIVE_BF16_FLAGS)


@functools.cache
def bf16_speedup(hidden: int, intermediate: int) -> float:
    """How many times as fast as float32 bfloat16 products are here; measured once per process and size.

    The products are those of a frozen layer: forward `[tokens, hidden] @ [hidden, intermediate]`, and the
    gradient of its input, `[tokens, intermediate] @ [intermediate, hidden]`. The dtypes take turns, so that
    another load on the machine strikes both, and the shortest times are compared: a load only adds.
    """
    products = [_frozen_layer(dtype, hidden, intermediate) for dtype in (torch.float32, torch.bfloat16)]
    for product in products:
        product()  # the first call prepares kernels
    seconds: list[list[float]] = [[], []]
    start = time.perf_counter()
    for _ in range(PROBE_REPEATS):
        for times, product in zip(seconds, products, strict=True):
            before = time.perf_counter()
            product()
            times.append(time.perf_counter() - before)
        if time.perf_counter() - start > PROBE_SECONDS:
            break
    float32, bfloat16 = (min(times) for times in seconds)
    logger.info("dtype probe: float32 %.2f ms, bfloat16 %.2f ms", 1e3 * float32, 1e3 * bfloat16)
    return float32 / bfloat16


def _frozen_layer(dtype: torch.dtype, hidden: int, intermediate: int) -> Callable[[], object]:
    weight = torch.ones(intermediate, hidden, dtype=dtype)
    x = torch.ones(PROBE_TOKENS, hidden, dtype=dtype)
    gradient = torch.ones(PROBE_TOKENS, intermediate, dtype=dtype)

    # Into memory that is there already: page faults of new memory would say more than the products.
    outputs = torch.empty_like(gradient), torch.empty_like(x)

    def product() -> object:
        return torch.mm(x, weight.T, out=outputs[0]), torch.mm(gradient, weight, out=outputs[1])

    return product
