"""Which way of decoding gives what each prompt would be answered alone.

Found by a trial, not by a table of names: an architecture that nobody thought of is slow, but right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedloom.evaluation.decode_padded import PaddedRows
from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.cache import keeps_every_token, roomy_cache
from fedloom.model.lengths import longest_together
from fedloom.model.stacked import StackedModel
from fedloom.model.trial import in_float32, tolerance_of
from fedloom.model.trial_clients import two_adapters
from fedloom.model.trunk import position_offset

log = logging.getLogger(__name__)

# The trial's rows: their tokens where the model has as many positions and at least; what all begin with.
_TOKENS, _FEWEST, _SHARED = 18, 9, 2
_WINDOWS = re.compile(r"window(_size)?$|^local_attention$|^attention_chunk_size$")


class Way(Enum):
    """From the fastest to what is always right."""

    SHARED = "what all prompts begin with is read once per adapter"
    PADDED = "prompts of unequal length in one pass, padded"
    EQUAL = "only prompts of one length in one pass"
    ALONE = "only prompts of one length and one adapter in one pass"


_FOUND: WeakKeyDictionary[StackedModel, Way] = WeakKeyDictionary()


@torch.no_grad()
def way_of(model: StackedModel, longest: int) -> Way:
    """The fastest way that is right for an architecture.

    Args:
        model: The frozen base with stacked adapters.
        longest: Tokens of the longest prompt and its answer, with virtual ones.
    """
    if model not in _FOUND:
        with in_float32(model.model):
            _FOUND[model] = _try(model)
        log.info("answers are written side by side: %s", _FOUND[model].value)
    way = _FOUND[model]
    if way in (Way.SHARED, Way.PADDED):
        cached, named = _windows(model)
        together = longest_together(model.model)
        if together is not None and longest > together:
            return Way.EQUAL
        if not cached and longest > min(named, default=longest):
            return Way.EQUAL
        if longest > min(cached, default=longest):
            return Way.PADDED  # pads behind shared tokens would push these out of a window too early
    return way


def _try(model: StackedModel) -> Way:
    positions = learned_positions(model)
    length = _TOKENS if positions is None else min(_TOKENS, positions - model.layout.virtual)
    if length < _FEWEST:
        return Way.ALONE
    rows = torch.arange(4 * length, device=model.device).view(4, -1) * 37 % 89 + 5
    rows[:, :_SHARED] = rows[0, :_SHARED]
    prompts = (length - 3, 4, 6, 5)
    parameters = two_adapters(model.initial, model.device)
    one, other = ({name: t[[k]] for name, t in parameters.items()} for k in (0, 1))
    alone = torch.cat([_scores(model, one, rows[:2], [2]), _scores(model, other, rows[2:], [2])])
    last_read = torch.tensor(prompts, device=model.device) - 1
    wanted = [alone[torch.arange(4), last_read + step] for step in range(3)]
    decoded = partial(_decoded, model, parameters, rows, prompts)
    tolerance = tolerance_of(model.model)
    if _gives(lambda: decoded(share=True), wanted, tolerance, Way.SHARED):
        return Way.SHARED
    if _gives(lambda: decoded(share=False), wanted, tolerance, Way.PADDED):
        return Way.PADDED
    if _gives(lambda: [_scores(model, parameters, rows, [2, 2])], [alone], tolerance, Way.EQUAL):
        return Way.EQUAL
    return Way.ALONE


def _gives(trial: Callable[[], list[Tensor]], wanted: list[Tensor], tolerance: float, way: Way) -> bool:
    try:
        got = trial()
    except Exception as error:  # whatever an architecture cannot do
        log.info("not side by side as %s: %s: %s", way.name, type(error).__name__, error)
        return False
    apart = max(_apart(ours, theirs[-len(ours) :]) for ours, theirs in zip(got, wanted, strict=True))
    if not apart <= tolerance:
        log.info("not side by side as %s: the trial differs by %.2g", way.name, apart)
        return False
    return True


def _apart(ours: Tensor, theirs: Tensor) -> float:
    # Of the same for all tokens a score says nothing, and in a trained model it is most of the score.
    ours, theirs = (t.double() - t.double().mean(-1, keepdim=True) for t in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def _decoded(
    model: StackedModel,
    parameters: Mapping[str, Tensor],
    tokens: Int[Tensor, "4 tokens"],
    lengths: Sequence[int],
    *,
    share: bool,
) -> list[Tensor]:
    """Scores after the prompts and after each of two tokens, before the second of which a row has ended."""
    prompts = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    if not keeps_every_token(roomy_cache(model.model)):
        raise ValueError("its cache holds more than keys and values")
    rows = PaddedRows(model, parameters, prompts, [2, 2], share=share)
    read = torch.tensor(lengths, device=tokens.device)
    every, kept = torch.arange(4, device=tokens.device), torch.arange(1, 4, device=tokens.device)
    scores = [rows.read(), rows.append(tokens[every, read])]
    rows.keep(kept)
    return [*scores, rows.append(tokens[kept, read[kept] + 1])]


def _scores(
    model: StackedModel, parameters: Mapping[str, Tensor], ids: Int[Tensor, "rows tokens"], units: list[int]
) -> Float[Tensor, "rows tokens vocabulary"]:
    """What follows each token, rows without pads read in one go."""
    virtual = virtual_tokens(parameters)
    inputs: dict[str, Any] = {"input_ids": ids}
    if virtual is not None:
        embedded = model.model.get_input_embeddings()(ids)
        prefix = virtual.to(embedded.dtype).repeat_interleave(torch.tensor(units, device=ids.device), 0)
        inputs = {"inputs_embeds": torch.cat([prefix, embedded], 1)}
    with model.as_clients(parameters, units) as plain:
        return plain(**inputs).logits[:, -ids.shape[1] :]


def _windows(model: StackedModel) -> tuple[list[int], list[int]]:
    """How many tokens a model's layers see: those whose cache holds no more, and what else its config names.

    The former transformers masks the same way in all architectures, pads or not; the others do as they like.
    """
    cached = [getattr(layer, "sliding_window", None) for layer in roomy_cache(model.model).layers]
    config = model.model.config.get_text_config().to_dict()
    named = [value for name, value in config.items() if _WINDOWS.search(name)]
    return [n for n in cached if n], [n for n in named if type(n) is int and n > 0]


def learned_positions(model: StackedModel) -> int | None:
    """Tokens that a model has positions for, virtual ones included; None: for as many as may come."""
    plain = model.model
    most = getattr(plain.config.get_text_config(), "max_position_embeddings", None)
    if most is None:
        return None
    words = plain.get_input_embeddings()
    tables = [m.weight for m in plain.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [buffer for buffer in plain.buffers() if buffer.dim() == 2]
    # Some tables have a few rows more, for pads; RoBERTa counts those in.
    learned = any(most <= len(table) <= most + 4 for table in tables)
    return most - position_offset(plain) if learned else None
