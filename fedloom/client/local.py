"""Local training of a stack of clients: each takes its own steps on its own data, all in the same passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedloom.client.optimisers import Optimiser, State, clip, scaled
from fedloom.client.private import ExamplePrivacy, Noised, noised_gradients
from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none as no_rule
from fedloom.client.steps import Step, passes
from fedloom.errors import UserError
from fedloom.model.adapters.ranks import within_ranks
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel


@dataclass(frozen=True)
class LocalRules:
    """How clients train.

    Attributes:
        optimiser: SGD or Adam.
        rule: What clients do to their gradients first, such as FedProx's proximal term; see `client.rules`.
        clip_norm: Largest norm of a client's gradient; 0 turns clipping off.
        accumulate: "mean": a step's gradient is that of its loss; "sum": it is as many times that as the step
            has batches. Losses are reported as means in either case.
        wave_tokens: Tokens per pass; results do not depend on it beyond rounding.
        dropout_seed: The run's seed; None turns dropout off.
        privacy: How their steps hide their examples; None: not at all.
    """

    optimiser: Optimiser
    rule: ClientRule = field(default_factory=no_rule)
    clip_norm: float = 0.0
    accumulate: Literal["mean", "sum"] = "mean"
    wave_tokens: int = 4096
    dropout_seed: int | None = None
    privacy: ExamplePrivacy | None = None


@dataclass(frozen=True)
class LocalResult:
    """What clients come back with.

    Attributes:
        bank: Their adapters after training.
        state: Their optimisers' state.
        loss: Mean over the client's steps, each counted by its batches; nan for a client without any.
        correct: Labels predicted right, while training.
        labels: Labels seen.
        tokens: Tokens that went through the model.
        memory: What their rule remembers, ``[clients, *shape]``.
        sent: What their rule sends to the server, likewise.
    """

    bank: AdapterBank
    state: State
    loss: Float[Tensor, " clients"]
    correct: Int[Tensor, " clients"]
    labels: Int[Tensor, " clients"]
    tokens: Int[Tensor, " clients"]
    memory: State = field(default_factory=dict)
    sent: State = field(default_factory=dict)


def train_locally(
    model: StackedModel,
    bank: AdapterBank,
    work: Sequence[Sequence[Step]],
    rules: LocalRules,
    state: State | None = None,
    frozen: Row | None = None,
    memory: State | None = None,
    received: Row | None = None,
    ranks: Sequence[int] | None = None,
    resting: State | None = None,
    personal: Collection[str] = (),
    noised: Sequence[Noised] | None = None,
) -> LocalResult:
    """Train every client of ``bank`` on its own steps, as if each were alone.

    Args:
        model: The frozen base with stacked adapters.
        bank: Where each client starts.
        work: For each client its optimiser steps; clients may have different numbers of them. One whose
            steps have run out keeps its parameters, moments and step count.
        rules: How to train.
        state: The clients' optimiser state; None starts afresh.
        frozen: Adapter parameters that nobody trains, the same for all clients; None: all are in ``bank``.
        memory: What the rule remembers of each client, ``[clients, *shape]``.
        received: What the server sent for the rule, ``[*shape]``; among peers each one's, ``[clients,
            *shape]``.
        ranks: Each client's LoRA rank; ``bank`` holds zeros beyond it, and still does afterwards. None: all
            have the adapter's own.
        resting: Adapter parameters that rest in this round, each client's own, ``[clients, *shape]``.
        personal: Names of those that are not sent, of which a rule may make a difference.
        noised: Whose steps these are, where they hide their examples; nothing is then told of how they went.
    """
    start, memory, received = bank, memory or {}, received or {}
    state = rules.optimiser.init(bank) if state is None else state
    losses = torch.zeros(bank.clients, dtype=torch.float64)
    correct, labels, tokens = (torch.zeros(bank.clients, dtype=torch.long) for _ in range(3))
    for index in range(max(map(len, work), default=0)):
        steps = [client[index] if index < len(client) else [] for client in work]
        moving, rests = bank, resting
        if rules.rule.head_steps:  # of an optimiser what rests keeps its moments, too
            moving, apart = bank.split(personal, first=index < rules.rule.head_steps)
            rests = (resting or {}) | apart.tensors
        if rules.privacy is None:
            active = torch.tensor([bool(step) for step in steps])
            gradients, report = _gradients_by_rule(
                partial(
                    step_gradients,
                    model,
                    steps=steps,
                    rules=rules,
                    frozen=frozen,
                    ranks=ranks,
                    resting=rests,
                ),
                rules.rule,
                (moving, start, memory, received),
            )
        else:  # a step without examples is one
            active = torch.tensor([index < len(client) for client in work])
            gradients = noised_gradients(
                model,
                moving,
                passes(steps, model.layout, rules.wave_tokens),
                rules.privacy,
                noised or [],
                index,
                frozen or {},
                rests or {},
                rules.dropout_seed,
            )
            report = StepReport(losses * 0, correct * 0, labels * 0, tokens * 0)
        batches_now = torch.tensor([len(step) for step in steps])
        if rules.accumulate == "sum":
            gradients = scaled(gradients, batches_now)
        if rules.rule.observe is not None:
            seen = rules.rule.observe(gradients, moving, start, memory, received)
            memory = memory | {name: _of_active(active, memory[name], t) for name, t in seen.items()}
        gradients = rules.rule.correct(gradients, moving, start, memory, received)
        if ranks is not None:  # a rule may know what lies beyond a client's rank
            gradients = AdapterBank(within_ranks(gradients.tensors, ranks))
        gradients = clip(gradients, rules.clip_norm)
        moments = {key: t for key, t in state.items() if key.partition(".")[2] in moving.tensors}
        moved, new = rules.optimiser.step(moving, gradients, moments, active.to(bank.device))
        bank, state = AdapterBank(bank.tensors | moved.tensors), state | new
        losses += report.loss * batches_now
        correct += report.correct
        labels += report.labels
        tokens += report.tokens
    batches = torch.tensor([sum(map(len, client)) if rules.privacy is None else 1 for client in work])
    taken = torch.tensor([len(client) for client in work])
    memory, sent = rules.rule.finish(start, bank, taken, memory, received)
    if ranks is not None:
        memory, sent = within_ranks(memory, ranks), within_ranks(sent, ranks)
    return LocalResult(bank, state, losses / batches, correct, labels, tokens, memory, sent)


def _gradients_by_rule(
    take: Callable[[AdapterBank], tuple[AdapterBank, StepReport]],
    rule: ClientRule,
    where: tuple[AdapterBank, AdapterBank, State, Row],
) -> tuple[AdapterBank, StepReport]:
    """A step's gradients as the clients' rule takes them, and what the first of its passes says of the step.

    Args:
        take: Takes the gradients at some parameters.
        rule: The clients'.
        where: The parameters, where they began, what the rule remembers, and what it received.
    """
    if rule.gradient is None:
        return take(where[0])
    reports: list[StepReport] = []

    def gradient_at(bank: AdapterBank) -> AdapterBank:
        gradients, report = take(bank)
        reports.append(report)
        return gradients

    gradients = rule.gradient(gradient_at, *where)
    if not reports:
        raise UserError(
            "client_rule: its gradient never calls gradient_at, so that nothing is learned of data"
        )
    tokens = torch.stack([report.tokens for report in reports]).sum(0)
    return gradients, replace(reports[0], tokens=tokens)


def _of_active(active: Bool[Tensor, " clients"], before: Tensor, after: Tensor) -> Tensor:
    """``after`` of the clients that take a step, ``before`` of the others."""
    return torch.where(active.to(before.device).view(-1, *[1] * (before.ndim - 1)), after, before)


@dataclass
class StepReport:
    """What an optimiser step says of each client.

    Attributes:
        loss: Of the step, weighted as its gradient is.
        correct: Labels predicted right.
        labels: Labels seen.
        tokens: Tokens that went through the model.
    """

    loss: Float[Tensor, " clients"]
    correct: Int[Tensor, " clients"]
    labels: Int[Tensor, " clients"]
    tokens: Int[Tensor, " clients"]


def step_gradients(
    model: StackedModel,
    bank: AdapterBank,
    steps: Sequence[Step],
    rules: LocalRules,
    frozen: Row | None = None,
    ranks: Sequence[int] | None = None,
    resting: State | None = None,
) -> tuple[AdapterBank, StepReport]:
    """Each client's gradient of its own loss over one optimiser step, in as many passes as it takes.

    Args:
        model: The frozen base with stacked adapters.
        bank: Where each client is.
        steps: Each client's batches; none give a gradient of 0.
        rules: For the size of a pass and dropout.
        frozen: Adapter parameters that get no gradient, the same for all clients.
        ranks: Each client's LoRA rank; None: all have the adapter's own.
        resting: Adapter parameters that get no gradient, each client's own, ``[clients, *shape]``.
    """
    total: Row | None = None
    zeros = torch.zeros(bank.clients, dtype=torch.long)
    report = StepReport(zeros.double(), zeros.clone(), zeros.clone(), zeros.clone())
    for first, clients in passes(steps, model.layout, rules.wave_tokens):
        rows = slice(first, first + len(clients))
        leaves = {name: t[rows].detach().requires_grad_() for name, t in bank.tensors.items()}
        pack = build_pack(clients, model.layout)
        shared = {name: t.expand(len(clients), *t.shape) for name, t in (frozen or {}).items()}
        shared |= {name: t[rows] for name, t in (resting or {}).items()}
        parameters = model.at_ranks(leaves | shared, ranks and ranks[rows])
        out = model.losses(parameters, pack, rules.dropout_seed)
        # The sum over clients of each client's own loss: no gradient crosses clients.
        # A part of an adapter may be of no use to these batches (an expert that none of their tokens chose).
        gradients = torch.autograd.grad(
            out.loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        of_pass = dict(zip(leaves, gradients, strict=True))
        if total is None and len(clients) == bank.clients:
            total = of_pass
        else:
            total = total or bank.map(torch.zeros_like).tensors
            for name, gradient in of_pass.items():
                total[name][rows].add_(gradient)
        report.loss[rows] += out.loss.detach().cpu().double()
        report.correct[rows] += out.correct.cpu()
        report.labels[rows] += out.labels.cpu()
        report.tokens[rows] += torch.tensor(pack.client_tokens)
    return AdapterBank(total) if total else bank.map(torch.zeros_like), report
