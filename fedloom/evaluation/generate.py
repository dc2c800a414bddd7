"""What adapters write: greedy answers of many adapters in one pass, each row through its own adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from fedloom.evaluation.decode_equal import write_equal
from fedloom.evaluation.decode_padded import PaddedRows, write_padded
from fedloom.evaluation.ways import Way, learned_positions, way_of
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.memory import CacheRoom, cache_room
from fedloom.model.stacked import StackedModel

Prompt = Sequence[int]


@torch.no_grad()
def generate(
    model: StackedModel,
    bank: AdapterBank,
    prompts: Sequence[Sequence[Prompt]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    batch_size: int,
    frozen: Row | None = None,
    ranks: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Greedy continuations of each adapter's own prompts.

    Each is the one that transformers' ``generate`` gives for this adapter and this prompt alone. How many are
    written side by side depends on the architecture, see `Way`. What a model brings along for its sampling
    (penalties for repetition and the like) is left out. Where a model has no more positions, an answer ends.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters; with no tensors at all, the base itself writes.
        prompts: For each adapter its prompts, as token ids.
        ends: The tokens at which an answer ends.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts per pass and adapter.
        frozen: Adapter parameters that are the same for all and not in the bank.
        ranks: Each adapter's LoRA rank; None: all have the model's own.

    Returns:
        For each adapter and prompt the tokens written, without the one that ended it.
    """
    written: list[list[list[int]]] = [[[] for _ in own] for own in prompts]
    longest = max(len(prompt) for own in prompts for prompt in own)
    far = model.layout.virtual + longest + max_new_tokens
    way = way_of(model, far)
    positions = learned_positions(model)
    with model.as_clients({}, [1]) as plain:
        room = cache_room(plain)
    beside = far - longest  # tokens of a row that are not its prompt's
    for first, chosen in _passes(way, prompts, batch_size, beside, room):
        rows = slice(first, first + len(chosen))
        own = {name: t[rows].to(model.device) for name, t in bank.tensors.items()}
        shared = {
            name: t.to(model.device).expand(len(chosen), *t.shape) for name, t in (frozen or {}).items()
        }
        parameters = model.at_ranks(own | shared, ranks and ranks[rows])
        places = [(first + k, i) for k, own in enumerate(chosen) for i in own]
        asked = [prompts[adapter][i] for adapter, i in places]
        units = [len(own) for own in chosen]
        limits = [max_new_tokens] * len(asked)
        if positions is not None:  # the last token of an answer is not read
            limits = [min(max_new_tokens, positions + 1 - model.layout.virtual - len(own)) for own in asked]
        if way in (Way.SHARED, Way.PADDED):
            unread = PaddedRows(model, parameters, asked, units, share=way is Way.SHARED, positions=positions)
            answers = write_padded(unread, ends, limits)
        else:
            answers = write_equal(model, parameters, asked, units, ends, limits[0])
        for (adapter, i), answer in zip(places, answers, strict=True):
            written[adapter][i] = answer
    return written


def _passes(
    way: Way, prompts: Sequence[Sequence[Prompt]], batch_size: int, beside: int, room: CacheRoom
) -> Iterator[tuple[int, list[list[int]]]]:
    """Which prompts go into one pass: of like length, ``batch_size`` of each adapter, within the room.

    Yields:
        The first adapter of the pass, and for each adapter from there on the numbers of its prompts.
    """
    for group in _groups(way, prompts):
        for start in range(0, max(map(len, group)), batch_size):
            batch = [own[start : start + batch_size] for own in group]
            longest = max(len(prompts[k][i]) for k, own in enumerate(batch) for i in own)
            adapters = 1 if way is Way.ALONE else max(1, room.rows(longest + beside) // batch_size)
            for first in range(0, len(batch), adapters):
                if any(batch[first : first + adapters]):
                    yield first, batch[first : first + adapters]


def _groups(way: Way, prompts: Sequence[Sequence[Prompt]]) -> Iterator[list[list[int]]]:
    """For each adapter the numbers of those of its prompts that may share a pass, the shortest first."""
    order = [sorted(range(len(own)), key=[len(prompt) for prompt in own].__getitem__) for own in prompts]
    if way in (Way.SHARED, Way.PADDED):
        yield order
        return
    for length in sorted({len(prompt) for own in prompts for prompt in own}):
        yield [[i for i in own if len(prompts[k][i]) == length] for k, own in enumerate(order)]
