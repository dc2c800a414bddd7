"""The two ways to train a round of clients: a loop with PEFT as its users write it, and fedloom.

Each way lives in a process of its own (`workers.py`) and knows its contenders by name. A contender's
time starts with token ids in lists and ends with the trained adapters in tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from machine import describe_machine, gemm_rate, versions
from peft import get_peft_model
from stage import Measured, Stage, distance
from torch import Tensor
from workload import (
    LEARNING_RATE,
    SEED,
    linear_parameters,
    lora,
    starting_adapter,
)

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import sgd
from fedloom.client.work import ClientWork, Schedule, plan_work
from fedloom.data.encode import Tokens
from fedloom.federation.algorithm import Algorithm
from fedloom.model import blocks
from fedloom.model.bank import norm_of
from fedloom.model.layout import Layout, shared_prefix
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.precision import choose_dtype, has_native_bf16
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.in_process import run_clients


class PeftLoop:
    """HF PEFT: the model is loaded once, adapters change by copying tensors, batches go one by one."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.pad_id = stage.model().config.pad_token_id or 0
        self._wrapped: dict[str, Any] = {}

    def run(self, name: str, dtype: str, clients: int | None = None) -> Measured:
        """One round of a contender: `padded`, `dynamic`, `central` or `central-wide`."""
        model, parameters, start = self._peft(dtype)
        optimiser = torch.optim.SGD(parameters.values(), lr=LEARNING_RATE)
        rounds, tokens = self.stage.data.rounds[:clients], 0

        def restore() -> None:
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(start[key])

        def step(batches: Sequence[Sequence[Tokens]], pad: int) -> Tensor:
            """One optimiser step over some batches; the mean of their losses, left on the device."""
            nonlocal tokens
            total = torch.zeros((), device=self.stage.device)
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
            steps = [[list(chain.from_iterable(batches))] for batches in rounds] if wide else rounds
            return [step(batches, 0) for batches in steps], []

        trains = {
            "padded": lambda: loop(self.stage.settings.pad),
            "dynamic": lambda: loop(0),
            "central": lambda: central(wide=False),
            "central-wide": lambda: central(wide=True),
        }
        (losses, adapters), measured = self.stage.timed(trains[name])
        measured.tokens, measured.losses = tokens, [float(loss) for loss in losses]
        measured.moved = [distance(adapter, start) for adapter in adapters]
        return measured

    def _peft(self, dtype: str) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
        if dtype not in self._wrapped:
            model = get_peft_model(self.stage.model(dtype), lora()).train()
            parameters = {
                name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad
            }
            self._wrapped[dtype] = model, parameters, starting_adapter(parameters)
        return self._wrapped[dtype]

    def _collate(self, batch: Sequence[Tokens], pad: int) -> dict[str, Tensor]:
        longest = pad or max(len(s.ids) for s in batch)
        ids = torch.full((len(batch), longest), self.pad_id)
        labels = torch.full((len(batch), longest), -100)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for i, s in enumerate(batch):
            ids[i, : len(s.ids)] = torch.tensor(s.ids)
            for first, end in s.spans:
                labels[i, first:end] = torch.tensor(s.ids[first:end])
            mask[i, : len(s.ids)] = 1
        named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: t.to(self.stage.device) for name, t in named.items()}


class Fedloom:
    """fedloom's runtime, as `fedloom fed` calls it."""

    def __init__(self, stage: Stage):
        self.stage = stage
        model = stage.model()
        self.linear_parameters = linear_parameters(model)
        self.config = model.config.get_text_config()
        self._stacks: dict[str, tuple[StackedModel, dict[str, Tensor], int]] = {}

    def describe(self) -> dict[str, Any]:
        """The machine, the model and the data of the round; which dtypes are worth measuring."""
        if self.stage.settings.quantize != "none":
            auto, native = "bfloat16", True
        else:
            auto = str(choose_dtype("auto", self.stage.device, self.config)).removeprefix("torch.")
            native = auto == "bfloat16" or (self.stage.device.type == "cpu" and has_native_bf16())
        drawn = [s for batches in self.stage.data.rounds for batch in batches for s in batch]
        return {
            "auto": auto,
            "native_bf16": native,
            "machine": describe_machine(self.stage.device),
            "versions": versions(),
            "linear_parameters": self.linear_parameters,
            "sequences": len(drawn),
            "useful_tokens": sum(len(s.ids) for s in drawn),
            "longest": max(len(s.ids) for s in drawn),
            "labels": sum(end - first for s in drawn for first, end in s.spans),
            "shared_prefix": shared_prefix(self.stage.data.sequences),
            "dropped": self.stage.data.dropped,
            "needed_flops": self._needed_flops(drawn),
        }

    def run(self, name: str, dtype: str, clients: int | None = None) -> Measured:
        """One round of `fedloom`, or of `fedloom-loop`."""
        model, start, wave_tokens = self.stacked(dtype)
        rules = LocalRules(sgd(LEARNING_RATE), wave_tokens=wave_tokens)
        count = clients or len(self.stage.data.shares)

        def train() -> list[Any]:
            work = [self.work(client, model.layout) for client in range(count)]
            return list(run_clients(model, start, work, rules, Algorithm(LEARNING_RATE)))

        as_chosen = blocks.pay
        if name == "fedloom-loop":
            blocks.pay = lambda device, lengths: False
        updates, measured = self.stage.timed(train)
        blocks.pay = as_chosen
        measured.tokens = sum(update.tokens for update in updates)
        measured.losses = [update.loss for update in updates]
        measured.moved = [norm_of(update.payload) for update in updates]
        return measured

    def work(self, client: int, layout: Layout) -> ClientWork:
        """The client's batches of the round, as one optimiser step."""
        settings, data = self.stage.settings, self.stage.data
        # The mean over batches, as the other contenders compute it.
        schedule = Schedule(
            settings.batches, settings.batch_size, accumulate=settings.batches, mean_over="batches"
        )
        share = data.shares[client]
        return plan_work(data.sequences, share, schedule, layout, seed=SEED, client=client, round_=0, drawn=0)

    def gemm_rate(self, dtype: str, tokens: int) -> float:
        """FLOP/s of the model's products in one pass of so many tokens, measured now."""
        hidden = self.config.hidden_size
        intermediate = getattr(self.config, "intermediate_size", None) or 4 * hidden
        per_pass = min(tokens, self.stacked(dtype)[2])
        return gemm_rate(self.stage.device, getattr(torch, dtype), per_pass, hidden, intermediate)

    def stacked(self, dtype: str) -> tuple[StackedModel, dict[str, Tensor], int]:
        """The model with stacked adapters, where the clients start, and the tokens of a pass."""
        if dtype not in self._stacks:
            model = StackedModel(self.stage.model(dtype), lora(), seed=SEED)
            model.share_prefix(shared_prefix(self.stage.data.sequences))
            self._stacks[dtype] = model, starting_adapter(model.initial), auto_wave_tokens(model.model)
        return self._stacks[dtype]

    def _needed_flops(self, drawn: Sequence[Tokens]) -> int:
        """See `round.py`: 2 per weight and token forward, the same backward, the head at labels only."""
        tokens = sum(len(s.ids) for s in drawn)
        labels = sum(end - first for s in drawn for first, end in s.spans)
        head = self.config.hidden_size * self.config.vocab_size
        return 2 * 2 * (self.linear_parameters * tokens + head * labels)
