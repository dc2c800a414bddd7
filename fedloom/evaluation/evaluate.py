"""How good an adapter is on sequences with known labels: loss, accuracy, and the classes it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedloom.client.steps import passes
from fedloom.data.encode import Tokens
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Batch
from fedloom.model.losses import Losses
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.group import ALONE, Group

# Without a graph to keep, a pass holds one layer's activations: it may be larger than in training.
_PASS_FACTOR = 4


@dataclass(frozen=True)
class Validation:
    """Loss and accuracy over labels: answer tokens, classes, or preferences.

    Attributes:
        loss: Mean cross entropy per label, in nats; of preferences the mean loss of DPO.
        accuracy: Share of labels predicted right, an answer token given the true ones before it; of
            preferences the share in which the preferred answer has the larger reward.
    """

    loss: float
    accuracy: float


def validate(
    model: StackedModel, row: Row, sequences: Sequence[Tokens], wave_tokens: int, group: Group = ALONE
) -> Validation:
    """Loss and accuracy of one adapter on sequences with known answers.

    Args:
        model: The frozen base with stacked adapters.
        row: The adapter.
        sequences: What to judge it by.
        wave_tokens: Tokens per pass in training.
        group: As in `validate_rows`.
    """
    bank = AdapterBank.repeat(row, 1)
    return validate_rows(model, bank, [sequences], wave_tokens, group=group)[0]


@torch.no_grad()
def validate_rows(
    model: StackedModel,
    bank: AdapterBank,
    sequences: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    frozen: Row | None = None,
    group: Group = ALONE,
    ranks: Sequence[int] | None = None,
) -> list[Validation]:
    """Loss and accuracy of several adapters, many in one pass.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters.
        sequences: For each adapter what to judge it by.
        wave_tokens: Tokens per pass in training.
        frozen: Adapter parameters that are the same for all and not in the bank.
        group: Processes that hold the same adapters; each judges a share of the sequences, and all return the
            result of all.
        ranks: Each adapter's LoRA rank; None: all have the model's own.
    """
    losses = torch.zeros(len(sequences), dtype=torch.float64)
    correct, labels = (torch.zeros(len(sequences), dtype=torch.long) for _ in range(2))
    share = [_share(of_one, group) for of_one in sequences]
    for rows, out in _passes(model, bank, share, wave_tokens, frozen, ranks):
        losses[rows] += out.loss.cpu().double()
        correct[rows] += out.correct.cpu()
        labels[rows] += out.labels.cpu()
    found = group.sum({"losses": losses, "correct": correct, "labels": labels})
    return [
        Validation(float(loss) / int(n), int(right) / int(n))
        for loss, right, n in zip(found["losses"], found["correct"], found["labels"], strict=True)
    ]


def _share(sequences: Sequence[Tokens], group: Group) -> Sequence[Tokens]:
    """Of sequences by length every n-th: shares of like work."""
    if group.size == 1:
        return sequences
    return [sequences[i] for i in _by_length(sequences)[group.rank :: group.size]]


def success_rates(
    model: StackedModel,
    bank: AdapterBank,
    triggered: Sequence[Tokens],
    wave_tokens: int,
    frozen: Row | None = None,
    group: Group = ALONE,
) -> list[float]:
    """The share of sequences that each adapter answers to the last token as they want it.

    Every token that is right, given the true ones before it, is what the model itself would write, from the
    first to the last.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters.
        triggered: Sequences with the answers that an attacker wants; at least one.
        wave_tokens: Tokens per pass in training.
        frozen: Adapter parameters that are the same for all and not in the bank.
        group: As in `validate_rows`.
    """
    rates = []
    for row in (bank.rows([k]) for k in range(bank.clients)):
        if all(one.label >= 0 for one in triggered):
            rates.append(validate_rows(model, row, [triggered], wave_tokens, frozen, group)[0].accuracy)
            continue
        # Each sequence as if it had an adapter of its own: so it is judged apart from the others.
        singly = [[one] for one in triggered[group.rank :: group.size]]
        alone = AdapterBank({name: t.expand(len(singly), *t.shape[1:]) for name, t in row.tensors.items()})
        results = validate_rows(model, alone, singly, wave_tokens, frozen) if singly else []
        right = torch.tensor([sum(one.accuracy == 1 for one in results)], dtype=torch.float64)
        rates.append(float(group.sum({"right": right})["right"]) / len(triggered))
    return rates


@torch.no_grad()
def predict_rows(
    model: StackedModel, bank: AdapterBank, sequences: Sequence[Sequence[Tokens]], wave_tokens: int
) -> list[list[int]]:
    """The class that each adapter predicts for each of its sequences, many in one pass.

    Args:
        model: The frozen classifier with stacked adapters.
        bank: The adapters; with no tensors, the base itself predicts.
        sequences: For each adapter what to classify.
        wave_tokens: Tokens per pass in training.
    """
    return _of_each(model, bank, sequences, wave_tokens, lambda out: out.predicted)


@torch.no_grad()
def margins_of_rows(
    model: StackedModel, bank: AdapterBank, sequences: Sequence[Sequence[Tokens]], wave_tokens: int
) -> list[list[float]]:
    """By how much more each adapter prefers the chosen answer of each preference than the reference does.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters; with no tensors, the base itself.
        sequences: For each adapter preferences that have a reference.
        wave_tokens: Tokens per pass in training.

    Returns:
        For each adapter its margins, in nats; see `Losses.margins`.
    """
    return _of_each(model, bank, sequences, wave_tokens, lambda out: out.margins)


def _of_each(
    model: StackedModel,
    bank: AdapterBank,
    sequences: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    read: Callable[[Losses], torch.Tensor | None],
) -> list[list[Any]]:
    """What passes say of each sequence, in the order of the sequences."""
    by_length: list[list[Any]] = [[] for _ in sequences]
    for rows, out in _passes(model, bank, sequences, wave_tokens, None):
        every = read(out)
        assert every is not None, "a language model predicts no classes, and only preferences have margins"
        pieces = every.cpu().split(out.labels.tolist())
        for of_adapter, piece in zip(by_length[rows], pieces, strict=True):
            of_adapter += piece.tolist()
    return [
        [found for _, found in sorted(zip(_by_length(of_adapter), each, strict=True))]
        for of_adapter, each in zip(sequences, by_length, strict=True)
    ]


def _passes(
    model: StackedModel,
    bank: AdapterBank,
    sequences: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    frozen: Row | None,
    ranks: Sequence[int] | None = None,
) -> Iterator[tuple[slice, Losses]]:
    """Run every adapter's sequences; yields the adapters of a pass, and what the pass says of each."""
    work = [_batches(of_adapter) for of_adapter in sequences]
    for first, clients in passes(work, model.layout, _PASS_FACTOR * wave_tokens):
        rows = slice(first, first + len(clients))
        trained = {name: t[rows].to(model.device) for name, t in bank.tensors.items()}
        shared = {
            name: t.to(model.device).expand(len(clients), *t.shape) for name, t in (frozen or {}).items()
        }
        parameters = model.at_ranks(trained | shared, ranks and ranks[rows])
        yield rows, model.losses(parameters, build_pack(clients, model.layout))


def _batches(sequences: Sequence[Tokens]) -> list[Batch]:
    ordered = [sequences[i] for i in _by_length(sequences)]
    return [Batch(ordered[i : i + 8], 1.0) for i in range(0, len(ordered), 8)]


def _by_length(sequences: Sequence[Tokens]) -> list[int]:
    """Sequences of like length side by side: fewer pads, where there are pads."""
    return sorted(range(len(sequences)), key=lambda i: max(len(side.ids) for side in sequences[i].sides))
