"""Where a model computes: the device, what it takes, and bitsandbytes on it."""

import importlib
import importlib.util
from typing import Any

import torch

from fedloom.errors import UserError

MOST_BLOCKS = 65535
"""Blocks along the second and third axis of a CUDA GPU's grid, by which attention kernels count sequences."""


def quantised(
    quantize: str, dtype: torch.dtype, device: torch.device, plain: list[str] | None
) -> dict[str, Any]:
    """Arguments of `from_pretrained`; `plain` are modules to leave as they are, None the library's choice."""
    from transformers import BitsAndBytesConfig

    if quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=plain,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=plain)
    return {"quantization_config": config, "device_map": {"": device}}


def check_quantize(quantize: str, device: torch.device) -> None:
    """Say early that bitsandbytes is missing or does not work on this device.

    Raises:
        UserError: with the way to mend it.
    """
    if quantize == "none":
        return
    if quantize not in ("8bit", "4bit"):
        raise UserError(f"quantize {quantize!r}: must be one of none, 8bit, 4bit.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize {quantize!r}: needs bitsandbytes, which is not installed. "
            "Install it: pip install 'fedloom[quantize]'; or use --quantize none."
        )
    try:
        devices = set(importlib.import_module("bitsandbytes").supported_torch_devices)
    except Exception as error:  # a build that does not fit this machine fails in many ways
        raise UserError(
            f"quantize {quantize!r}: bitsandbytes is installed but does not start here ({error}). "
            "Reinstall it: pip install -U bitsandbytes; or use --quantize none."
        ) from error
    if device.type not in devices:
        raise UserError(
            f"quantize {quantize!r}: this bitsandbytes works on {', '.join(sorted(devices))}, "
            f"not on device {str(device)!r}. Choose another device, or --quantize none."
        )


def resolve_device(device: str) -> torch.device:
    """The device of this name; `auto` is the first CUDA GPU, else the CPU.

    Raises:
        UserError: there is no such device on this machine.
    """
    found = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    if device == "auto":
        return torch.device("cuda:0" if "cuda:0" in found else "cpu")
    wanted = device if ":" in device or device == "cpu" else f"{device}:0"
    if wanted not in found:
        raise UserError(f"device {device!r}: there is no such device here. Choose auto, {', '.join(found)}.")
    return torch.device(wanted)
