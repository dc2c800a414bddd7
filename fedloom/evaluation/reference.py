"""What the frozen base thinks of preferences, computed once for each: what DPO holds a model to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedloom.client.local import passes
from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.group import ALONE, Group

log = logging.getLogger(__name__)

_PER_BATCH = 4
# Without a graph to keep, a pass holds one layer's activations: it may be larger than in training.
_PASS_FACTOR = 4


def with_references(
    model: StackedModel, lists: Sequence[Sequence[Tokens]], wave_tokens: int, group: Group = ALONE
) -> list[list[Tokens]]:
    """Sequences whose preferences know the base's log π_ref(y_w|x) − log π_ref(y_l|x), in nats.

    The base runs as it was loaded: no adapter, no virtual tokens, no dropout. What is there already, and what
    is no preference, stays.

    Args:
        model: The base, in which nothing is folded.
        lists: Lists of sequences; one that stands there several times is looked at once.
        wave_tokens: Tokens per pass in training.
        group: Processes that have the same lists; each computes a share.
    """
    distinct = {id(sequences): sequences for sequences in lists}
    unknown = [
        (key, place)
        for key, sequences in distinct.items()
        for place, tokens in enumerate(sequences)
        if tokens.rejected is not None and tokens.reference is None
    ]
    filled = {key: list(sequences) for key, sequences in distinct.items()}
    if unknown:
        log.info("reference of DPO: log-probabilities of %d preferences under the base", len(unknown))
        # Sequences of like length side by side: fewer pads, where there are pads.
        unknown.sort(key=lambda at: max(len(side.ids) for side in distinct[at[0]][at[1]].sides))
        ratios = torch.zeros(len(unknown), dtype=torch.float64)
        own = slice(group.rank, None, group.size)
        ratios[own] = _ratios(model, [distinct[key][place] for key, place in unknown[own]], wave_tokens)
        summed = group.sum({"ratios": ratios})["ratios"].tolist()
        for (key, place), ratio in zip(unknown, summed, strict=True):
            filled[key][place] = filled[key][place]._replace(reference=ratio)
    return [filled[id(sequences)] for sequences in lists]


@torch.no_grad()
def _ratios(model: StackedModel, preferences: Sequence[Tokens], wave_tokens: int) -> torch.Tensor:
    layout = replace(model.layout, virtual=0)
    # Against a reference of 0 a margin is the base's own ratio.
    plain = [tokens._replace(reference=0.0) for tokens in preferences]
    batches = [Batch(plain[i : i + _PER_BATCH], 1.0) for i in range(0, len(plain), _PER_BATCH)]
    found = [torch.zeros(0, dtype=torch.float64)]
    for _, clients in passes([batches], layout, _PASS_FACTOR * wave_tokens):
        margins = model.losses({}, build_pack(clients, layout)).margins
        assert margins is not None, "preferences have margins"
        found.append(margins.cpu().double())
    return torch.cat(found)
