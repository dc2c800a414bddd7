"""What all contenders have in common: the frozen models, the data, and how a round is timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar
from workers import Settings
from workload import load, load_data

from fedloom.model.base import BaseModel, resolve_device


@dataclass
class Measured:
    """One round of one contender.

    Attributes:
        seconds: Wall time.
        tokens: Tokens that went through the model, pads included.
        losses: Each client's mean loss over its batches, before its step; of `central`, each step's.
        moved: Euclidean norm of each client's change of its adapter.
        peak_bytes: Peak memory on the GPU; None on the CPU.
    """

    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


class Stage:
    """What both ways use: the frozen models, the data, and how a round is timed."""

    def __init__(self, settings: Settings):
        disable_progress_bar()
        self.settings = settings
        self.device = resolve_device(settings.device)
        self._bases: dict[str, Any] = {}
        # Of the first one only, where only one is measured: a large model is not to be there twice.
        first = "bfloat16" if settings.quantize != "none" else "float32"
        base = self._base(first if settings.dtype == "auto" else settings.dtype)
        self.data = load_data(settings, base)

    def model(self, dtype: str | None = None) -> Any:
        """The plain transformers model of this dtype; None: of any."""
        base = self._base(dtype or next(iter(self._bases)))
        return base.model if isinstance(base, BaseModel) else base

    def _base(self, dtype: str) -> Any:
        if dtype not in self._bases:
            self._bases[dtype] = load(self.settings, dtype)
        return self._bases[dtype]

    def timed(self, train: Callable[[], Any]) -> tuple[Any, Measured]:
        """Run and time, with the device's queue empty before and after."""
        gc.collect()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        out = train()
        if cuda:
            torch.cuda.synchronize(self.device)
        measured = Measured(time.perf_counter() - start)
        if cuda:
            measured.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        return out, measured


def distance(after: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    squares = [(after[name].double() - before[name].double()).square().sum() for name in before]
    return float(torch.stack(squares).sum().sqrt())
