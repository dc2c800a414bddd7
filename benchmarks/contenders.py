"""The two ways to train a round of clients: a loop with PEFT as its users write it, and fedloom.

Each way lives in a process of its own (`workers.py`) and knows its contenders by name. A contender's
time starts with token ids in lists and ends with the trained adapters in tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from machine import describe_machine, gemm_rate
from peft import get_peft_model
from torch import Tensor
from workload import (
    LEARNING_RATE,
    SEED,
    Settings,
    linear_parameters,
    load,
    load_data,
    lora,
    starting_adapter,
)

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import sgd
from fedloom.client.work import Schedule, plan_work
from fedloom.data.encode import Tokens
from fedloom.model.base import BaseModel, resolve_device
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.packing import shared_prefix
from fedloom.model.precision import choose_dtype, has_native_bf16
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.in_process import run_clients


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


class Way:
    """What the two ways share: the data, and how a round is timed."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.bases: dict[str, Any] = {}
        base = self.base("bfloat16" if settings.quantize != "none" else "float32")
        self.data = load_data(settings, base)

    def base(self, dtype: str) -> Any:
        """The loaded model of this dtype."""
        if dtype not in self.bases:
            self.bases[dtype] = load(self.settings, dtype)
        return self.bases[dtype]

    def model(self, dtype: str) -> Any:
        """The plain transformers model of this dtype."""
        base = self.base(dtype)
        return base.model if isinstance(base, BaseModel) else base

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


class PeftLoop(Way):
    """HF PEFT: the model is loaded once, adapters change by copying tensors, batches go one by one."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.wrapped: dict[str, Any] = {}
        model = self.model(next(iter(self.bases)))
        self.pad_id = model.config.pad_token_id or 0

    def run(self, name: str, dtype: str, clients: int | None = None) -> Measured:
        """One round of a contender: `padded`, `dynamic`, `central` or `central-wide`."""
        model, parameters, start = self._peft(dtype)
        optimiser = torch.optim.SGD(parameters.values(), lr=LEARNING_RATE)
        rounds, tokens = self.data.rounds[:clients], 0

        def restore() -> None:
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(start[key])

        def step(batches: Sequence[Sequence[Tokens]], pad: int) -> Tensor:
            """One optimiser step over some batches; the mean of their losses, left on the device."""
            nonlocal tokens
            total = torch.zeros((), device=self.device)
            for batch in batches:
                inputs = self._collate(batch, pad)
                tokens += inputs["input_ids"].numel()
                loss = model(**inputs).loss / len(batches)
                loss.backward()
                total += loss.detach()
            optimiser.step()
            optimiser.zero_grad()
            return total

        def loop(pad: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
            losses, adapters = [], []
            for batches in rounds:
                restore()
                losses.append(step(batches, pad))
                adapters.append({key: p.detach().clone() for key, p in parameters.items()})
            return losses, adapters

        def central(wide: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
            restore()
            steps = [[sum(batches, [])] for batches in rounds] if wide else rounds
            return [step(batches, 0) for batches in steps], []

        trains = {
            "padded": lambda: loop(self.settings.pad),
            "dynamic": lambda: loop(0),
            "central": lambda: central(wide=False),
            "central-wide": lambda: central(wide=True),
        }
        (losses, adapters), measured = self.timed(trains[name])
        measured.tokens, measured.losses = tokens, [float(loss) for loss in losses]
        measured.moved = [_distance(adapter, start) for adapter in adapters]
        return measured

    def _peft(self, dtype: str) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
        if dtype not in self.wrapped:
            model = get_peft_model(self.model(dtype), lora()).train()
            parameters = {
                name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad
            }
            self.wrapped[dtype] = model, parameters, starting_adapter(parameters)
        return self.wrapped[dtype]

    def _collate(self, batch: Sequence[Tokens], pad: int) -> dict[str, Tensor]:
        longest = pad or max(len(s.ids) for s in batch)
        ids = torch.full((len(batch), longest), self.pad_id)
        labels = torch.full((len(batch), longest), -100)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for i, s in enumerate(batch):
            ids[i, : len(s.ids)] = torch.tensor(s.ids)
            labels[i, s.answer_start : len(s.ids)] = torch.tensor(s.ids[s.answer_start :])
            mask[i, : len(s.ids)] = 1
        named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: t.to(self.device) for name, t in named.items()}


class Fedloom(Way):
    """fedloom's runtime, as `fedloom fed` calls it."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.stacked: dict[str, tuple[StackedModel, dict[str, Tensor], int]] = {}
        model = self.model(next(iter(self.bases)))
        self.linear_parameters = linear_parameters(model)
        self.config = model.config.get_text_config()

    def describe(self) -> dict[str, Any]:
        """The machine, the model and the data of the round; which dtypes are worth measuring."""
        if self.settings.quantize != "none":
            auto, native = "bfloat16", True
        else:
            auto = str(choose_dtype("auto", self.device, self.config)).removeprefix("torch.")
            native = auto == "bfloat16" or (self.device.type == "cpu" and has_native_bf16())
        drawn = [s for batches in self.data.rounds for batch in batches for s in batch]
        return {
            "auto": auto,
            "native_bf16": native,
            "machine": describe_machine(self.device),
            "linear_parameters": self.linear_parameters,
            "sequences": len(drawn),
            "useful_tokens": sum(len(s.ids) for s in drawn),
            "longest": max(len(s.ids) for s in drawn),
            "labels": sum(len(s.ids) - s.answer_start for s in drawn),
            "shared_prefix": shared_prefix(self.data.sequences),
            "dropped": self.data.dropped,
            "needed_flops": self._needed_flops(drawn),
        }

    def run(self, name: str, dtype: str, clients: int | None = None) -> Measured:
        """One round."""
        model, start, wave_tokens = self._stacked(dtype)
        rules = LocalRules(sgd(LEARNING_RATE), wave_tokens=wave_tokens)
        batches = self.settings.batches
        schedule = Schedule(batches, self.settings.batch_size, accumulate=batches)

        def train() -> list[Any]:
            work = [
                plan_work(
                    self.data.sequences,
                    share,
                    schedule,
                    model.layout,
                    seed=SEED,
                    client=client,
                    round_=0,
                    drawn=0,
                )
                for client, share in enumerate(self.data.shares[:clients])
            ]
            return list(run_clients(model, start, work, rules))

        updates, measured = self.timed(train)
        measured.tokens = sum(update.tokens for update in updates)
        measured.losses = [update.loss for update in updates]
        measured.moved = [_distance(update.adapter, start) for update in updates]
        return measured

    def gemm_rate(self, dtype: str, tokens: int) -> float:
        """FLOP/s of the model's products in one pass of so many tokens, measured now."""
        hidden = self.config.hidden_size
        intermediate = getattr(self.config, "intermediate_size", None) or 4 * hidden
        per_pass = min(tokens, self._stacked(dtype)[2])
        return gemm_rate(self.device, getattr(torch, dtype), per_pass, hidden, intermediate)

    def _stacked(self, dtype: str) -> tuple[StackedModel, dict[str, Tensor], int]:
        if dtype not in self.stacked:
            model = StackedModel(self.model(dtype), lora(), seed=SEED)
            model.share_prefix(shared_prefix(self.data.sequences))
            self.stacked[dtype] = model, starting_adapter(model.initial), auto_wave_tokens(model.model)
        return self.stacked[dtype]

    def _needed_flops(self, drawn: Sequence[Tokens]) -> int:
        """See `round.py`: 2 per weight and token forward, the same backward, the head at labels only."""
        tokens = sum(len(s.ids) for s in drawn)
        labels = sum(len(s.ids) - s.answer_start for s in drawn)
        head = self.config.hidden_size * self.config.vocab_size
        return 2 * 2 * (self.linear_parameters * tokens + head * labels)


def _distance(after: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    squares = [(after[name].double() - before[name].double()).square().sum() for name in before]
    return float(torch.stack(squares).sum().sqrt())


WAYS: dict[str, type[PeftLoop] | type[Fedloom]] = {"peft": PeftLoop, "fedloom": Fedloom}
