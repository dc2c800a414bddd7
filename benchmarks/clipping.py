"""The ways to sum a step's gradients, each example's clipped or none: HF PEFT, Opacus twice, and fedloom.

All start from the same LoRA adapter in float32, with dropout off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from peft import get_peft_model
from torch import Tensor
from workload import SEED, starting_adapter

from fedloom.client.local import LocalRules, step_gradients
from fedloom.client.optimisers import sgd
from fedloom.client.private import ExamplePrivacy, Noised, noised_gradients
from fedloom.client.steps import mean_step, passes
from fedloom.data.encode import Tokens
from fedloom.model.adapters.choice import lora
from fedloom.model.adapters.supported import saved_name
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Batch
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.stacked import StackedModel

RANK, ALPHA = 8, 16


class Peft:
    """A PEFT model as it is, with Opacus' hooks, and with its ghost clipping."""

    def __init__(self, load: Callable[[], Any], targets: str, classify: bool):
        self.classify = classify
        self.config = lora(load(), r=RANK, alpha=ALPHA, dropout=0.0, target_modules=targets or None)
        self.plain, self.hooked, self.ghost = (self._adapted(load()) for _ in range(3))
        self.modules = {
            "opacus": GradSampleModule(self.hooked, loss_reduction="sum"),
            "opacus-ghost": GradSampleModuleFastGradientClipping(self.ghost, loss_reduction="sum"),
        }
        kinds = {"opacus": DPOptimizer, "opacus-ghost": DPOptimizerFastGradientClipping}
        self.optimisers = {
            name: kind(
                torch.optim.SGD(self._trained(self.modules[name]), lr=0.1),
                noise_multiplier=0.0,
                max_grad_norm=1.0,
                expected_batch_size=None,
                loss_reduction="sum",
            )
            for name, kind in kinds.items()
        }

    def _adapted(self, model: Any) -> Any:
        wrapped = get_peft_model(model, self.config).eval()  # dropout is off
        for module in wrapped.modules():  # Opacus looks at what trains
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                module.train()
        named = self._named(wrapped)
        start = starting_adapter(named)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(start[name])
        return wrapped

    def _named(self, model: Any) -> dict[str, Any]:
        return {saved_name(n, self.config): p for n, p in model.named_parameters() if p.requires_grad}

    @staticmethod
    def _trained(model: Any) -> list[Any]:
        return [p for p in model.parameters() if p.requires_grad]

    def losses(self, model: Any, sequences: Sequence[Tokens]) -> Tensor:
        """Each example's own: of its class, or the mean over its answer."""
        ids = torch.tensor([s.ids for s in sequences])
        if self.classify:
            return F.cross_entropy(
                model(input_ids=ids).logits, torch.tensor([s.label for s in sequences]), reduction="none"
            )
        answer = len(sequences[0].ids) - sequences[0].answer_start
        logits = model(input_ids=ids, logits_to_keep=answer + 1).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, -answer:], reduction="none").mean(1)

    def peft(self, sequences: Sequence[Tokens]) -> Row:
        """Nothing clipped."""
        self.plain.zero_grad()
        self.losses(self.plain, sequences).sum().backward()
        return {name: p.grad for name, p in self._named(self.plain).items()}

    def opacus(self, sequences: Sequence[Tokens], clip: float, unit: float = 1.0) -> Row:
        """Every example's gradient, from hooks.

        Args:
            sequences: The examples.
            clip: C.
            unit: Opacus adds 1e-6 to each norm; of losses, and a C, so many times as large that is nothing.
        """
        optimiser = self.optimisers["opacus"]
        optimiser.zero_grad()
        optimiser.max_grad_norm = clip * unit
        (self.losses(self.modules["opacus"], sequences) * unit).sum().backward()
        optimiser.clip_and_accumulate()
        return {name: p.summed_grad / unit for name, p in self._named(self.hooked).items()}

    def opacus_ghost(self, sequences: Sequence[Tokens], clip: float, unit: float = 1.0) -> Row:
        """Norms, then a second backward pass; see `opacus`."""
        module, optimiser = self.modules["opacus-ghost"], self.optimisers["opacus-ghost"]
        optimiser.zero_grad()
        module.max_grad_norm = clip * unit
        losses = self.losses(module, sequences) * unit
        DPTensorFastGradientClipping(module, optimiser, losses, "sum").backward()
        return {name: p.grad / unit for name, p in self._named(self.ghost).items()}

    def median_norm(self, sequences: Sequence[Tokens]) -> float:
        """Of these examples\' gradients."""
        self.opacus_ghost(sequences, 1.0)
        return float(self.modules["opacus-ghost"].per_sample_gradient_norms.median())


class Fedloom:
    """The stacked model, and a step's gradients of each client."""

    def __init__(self, load: Callable[[], Any], targets: str):
        base = load()
        config = lora(base, r=RANK, alpha=ALPHA, dropout=0.0, target_modules=targets or None)
        self.model = StackedModel(base, config, seed=SEED)
        self.start = starting_adapter(self.model.initial)
        self.rules = LocalRules(sgd(0.1), wave_tokens=auto_wave_tokens(base))

    def plain(self, clients: Sequence[Sequence[Tokens]]) -> AdapterBank:
        """Nothing clipped."""
        steps = [mean_step([own], self.model.layout, [()]) for own in clients]
        return step_gradients(self.model, AdapterBank.repeat(self.start, len(clients)), steps, self.rules)[0]

    def clipped(self, clients: Sequence[Sequence[Tokens]], clip: float) -> AdapterBank:
        """As `--privacy example` clips."""
        steps = [[Batch([s], 1 / self._labels(s)) for s in own] for own in clients]
        return noised_gradients(
            self.model,
            AdapterBank.repeat(self.start, len(clients)),
            passes(steps, self.model.layout, self.rules.wave_tokens),
            ExamplePrivacy(clip, noise=0.0, key=0),
            [Noised(k, 0, expected=1.0) for k in range(len(clients))],
            0,
            {},
            {},
            None,
        )

    def _labels(self, sequence: Tokens) -> int:
        return 1 if self.model.layout.classify else len(sequence.ids) - sequence.answer_start
