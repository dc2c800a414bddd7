"""How good an adapter is: loss and token accuracy on given answers, and answers that it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from fedloom.client.local import passes
from fedloom.data.answers import extract_number, same_number
from fedloom.data.encode import Tokens
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Batch
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel

# Without a graph to keep, a pass holds one layer's activations: it may be larger than in training.
_PASS_FACTOR = 4


@dataclass(frozen=True)
class Validation:
    """Loss and accuracy over labels: answer tokens, or classes.

    Attributes:
        loss: Mean cross entropy per label, in nats.
        accuracy: Share of labels predicted right, an answer token given the true ones before it.
    """

    loss: float
    accuracy: float


def validate(model: StackedModel, row: Row, sequences: Sequence[Tokens], wave_tokens: int) -> Validation:
    """Loss and accuracy of one adapter on sequences with known answers.

    Args:
        model: The frozen base with stacked adapters.
        row: The adapter.
        sequences: What to judge it by.
        wave_tokens: Tokens per pass in training.
    """
    return validate_rows(model, AdapterBank.repeat(row, 1), [sequences], wave_tokens)[0]


@torch.no_grad()
def validate_rows(
    model: StackedModel,
    bank: AdapterBank,
    sequences: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    used: Row | None = None,
) -> list[Validation]:
    """Loss and accuracy of several adapters, many in one pass.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters.
        sequences: For each adapter what to judge it by.
        wave_tokens: Tokens per pass in training.
        used: Adapter parameters that are the same for all and not in the bank.
    """
    losses = torch.zeros(bank.clients, dtype=torch.float64)
    correct, labels = (torch.zeros(bank.clients, dtype=torch.long) for _ in range(2))
    work = [_batches(own) for own in sequences]
    for first, clients in passes(work, model.layout, _PASS_FACTOR * wave_tokens):
        rows = slice(first, first + len(clients))
        own = {name: t[rows].to(model.device) for name, t in bank.tensors.items()}
        shared = {name: t.to(model.device).expand(len(clients), *t.shape) for name, t in (used or {}).items()}
        out = model.losses(own | shared, build_pack(clients, model.layout))
        losses[rows] += out.loss.cpu().double()
        correct[rows] += out.correct.cpu()
        labels[rows] += out.labels.cpu()
    return [
        Validation(float(loss) / int(n), int(right) / int(n))
        for loss, right, n in zip(losses, correct, labels, strict=True)
    ]


def _batches(sequences: Sequence[Tokens]) -> list[Batch]:
    # Of like length side by side: fewer pads, where there are pads.
    ordered = sorted(sequences, key=lambda s: len(s.ids))
    return [Batch(ordered[i : i + 8], 1.0) for i in range(0, len(ordered), 8)]


@dataclass(frozen=True)
class Answers:
    """What an adapter wrote.

    Attributes:
        texts: The model's output per prompt.
        right: Whether the final number of each is the expected one.
        without_number: Outputs in which no number was found.
    """

    texts: list[str]
    right: list[bool]
    without_number: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


@torch.no_grad()
def answer(
    model: StackedModel,
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[str],
    *,
    end: int,
    max_new_tokens: int,
    batch_size: int = 32,
) -> Answers:
    """Let one adapter answer, greedily, and compare final numbers.

    Args:
        model: The frozen base with stacked adapters.
        row: The adapter.
        tokenizer: The model's.
        prompts: Token ids of the prompts.
        expected: The final number of each answer.
        end: The token that ends an answer.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at a time.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        written = _generate(model, row, [prompts[i] for i in group], end, max_new_tokens)
        for i, text in zip(group, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[i] = text
    numbers = [extract_number(text) for text in texts]
    right = [same_number(number, wanted) for number, wanted in zip(numbers, expected, strict=True)]
    return Answers(texts, right, sum(number is None for number in numbers))


def _generate(
    model: StackedModel, row: Row, prompts: Sequence[Sequence[int]], end: int, max_new_tokens: int
) -> torch.Tensor:
    """Greedy continuations, ``[prompts, new tokens]``; prompts are padded on the left."""
    longest = max(map(len, prompts))
    pad = model.layout.pad_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    virtual = model.prompt(row)
    if virtual is not None:
        embedded = model.model.get_input_embeddings()(ids)
        before = virtual.to(embedded.dtype).expand(len(prompts), -1, -1)
        inputs = {
            "inputs_embeds": torch.cat([before, embedded], 1),
            "attention_mask": torch.cat([mask.new_ones(before.shape[:2]), mask], 1),
        }
    with model.as_client(row) as plain:
        written = plain.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad
        )
    return written if virtual is not None else written[:, longest:]
