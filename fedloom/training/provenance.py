"""What a run's numbers depend on beside its options: the base model's files, versions, the device."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from fedloom.model.source import locate
from fedloom.runs.inputs import Inputs, note_model


@contextmanager
def base_noted(inputs: Inputs, name: str) -> Iterator[tuple[str, ...]]:
    """Take down the base model's digests, where it can be before it is loaded, and check all that there are.

    Args:
        inputs: Is told.
        name: Of the model.

    Yields:
        The digests; none where the model is not there yet.

    Raises:
        UserError: It, or something taken down before, is not what the run began with.
    """
    files, model = locate(name), Inputs()
    if files.local:
        note_model(model, Path(files.location), files.gguf_file)
    inputs.found |= model.found
    inputs.check()
    yield tuple(model.found.values())
    if not files.local and (files := locate(name)).local:  # it has been downloaded
        note_model(inputs, Path(files.location), files.gguf_file)
        inputs.check()


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    packages = ("fedloom", "torch", "transformers", "peft")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def device_name(device: torch.device) -> str:
    """A device as `config.yaml` records it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
