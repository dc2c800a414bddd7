"""An optimiser step as batches, and the passes that the steps of many clients take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from fedloom.model.layout import Batch, Layout, counted

Step = list[Batch]
"""The batches of one optimiser step; their weights make the loss a mean over them."""

MeanOver = Literal["tokens", "batches"]
"""What counts the same in an optimiser step of several batches: every label, or every batch."""


def passes(
    steps: Sequence[Step], layout: Layout, wave_tokens: int
) -> Iterator[tuple[int, list[list[Batch]]]]:
    """Cut one step of all clients into passes of at most ``wave_tokens`` tokens, batches whole.

    Yields:
        The first client of the pass, and the batches of each client from there on.
    """
    first, current, filled = 0, [], 0  # type: int, list[list[Batch]], int
    for client, step in enumerate(steps):
        for batch in step:
            cost = batch_tokens(batch, layout)
            if current and filled + cost > wave_tokens:
                yield first, current
                current, filled = [], 0
            if not current:
                first = client
            while first + len(current) <= client:
                current.append([])
            current[-1].append(batch)
            filled += cost
    if current:
        yield first, current


def batch_tokens(batch: Batch, layout: Layout) -> int:
    """Tokens that a batch puts through the model (pads included, what clients share counted once)."""
    lengths = [len(s.ids) + layout.virtual for tokens in batch.sequences for s in tokens.sides]
    if not layout.packed:
        return len(lengths) * max(lengths)
    return sum(lengths) - layout.shared * (len(lengths) - 1)


def mean_step(
    batches: Sequence[Sequence],
    layout: Layout,
    keys: Sequence[tuple[int, ...]],
    mean_over: MeanOver = "tokens",
) -> Step:
    """An optimiser step over some batches of sequences.

    Args:
        batches: Lists of `Tokens`.
        layout: The model's.
        keys: What each batch's dropout depends on, beside the seed.
        mean_over: "tokens": every label counts the same, so that batches make the loss of one batch that
            holds them all; a classifier's label is its class, and a preference counts as one. "batches": the
            mean over batches of each one's mean loss, in which the labels of a batch with short answers
            count more.
    """
    labels = [sum(counted(s, layout) for s in sequences) for sequences in batches]
    weights = [1 / (sum(labels) if mean_over == "tokens" else len(batches) * own) for own in labels]
    return [
        Batch(list(sequences), weight, key)
        for sequences, weight, key in zip(batches, weights, keys, strict=True)
    ]
