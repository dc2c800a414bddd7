"""Greedy decoding of rows of one length by transformers' own loop, each row through its own adapter.

Slower than `decode_padded.py`, and right for every architecture that transformers generates with: no pads,
the model's own cache, its own preparation of each step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.lengths import forget_lengths
from fedloom.model.stacked import StackedModel


def write_equal(
    model: StackedModel,
    parameters: Mapping[str, Tensor],
    prompts: Sequence[Sequence[int]],
    units: Sequence[int],
    ends: Collection[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Each row's likeliest tokens, one after the other, up to the token that ends its answer.

    Args:
        model: The frozen base with stacked adapters.
        parameters: ``{name: tensor[adapters, *shape]}`` on the model's device.
        prompts: Token ids of each row, adapter by adapter; all of one length.
        units: Rows of each adapter.
        ends: The tokens that end an answer; they are not part of it.
        max_new_tokens: Longest answer, in tokens.
    """
    pad = model.layout.pad_id
    virtual = virtual_tokens(parameters)
    owners = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units)).to(model.device)
    places = [pad] * (0 if virtual is None else virtual.shape[1])
    ids = torch.tensor([[*places, *prompt] for prompt in prompts], device=model.device)
    options = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    # An answer must not depend on what was read before it.
    forget_lengths(module for module in model.model.modules() if hasattr(module, "original_max_seq_len"))
    with (
        model.as_clients(parameters, units) as plain,
        _only(plain, options),
        _beginning_with(plain, None if virtual is None else virtual[owners]),
    ):
        written = plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
    return [_up_to(answer, ends) for answer in written[:, ids.shape[1] :].tolist()]


@contextmanager
def _only(model: PreTrainedModel, options: GenerationConfig) -> Iterator[None]:
    """Keep what comes with the model (sampling, penalties for repetition) out of a greedy answer."""
    before = model.generation_config
    model.generation_config = options
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _beginning_with(
    model: PreTrainedModel, virtual: Float[Tensor, "rows virtual width"] | None
) -> Iterator[None]:
    """Let ``model`` read virtual tokens in the first places of its rows, each time it reads these."""
    if virtual is None:
        yield
        return
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)  # `generate` reads its signature
    def prepare_with_virtual(input_ids: Tensor, **options: Any) -> dict[str, Any]:
        inputs = prepare(input_ids, **options)
        ids = inputs["input_ids"]
        if ids.shape[1] == input_ids.shape[1]:
            embedded = model.get_input_embeddings()(ids[:, virtual.shape[1] :])
            inputs["inputs_embeds"] = torch.cat([virtual.to(embedded.dtype), embedded], 1)
            del inputs["input_ids"]
        return inputs

    model.prepare_inputs_for_generation = prepare_with_virtual
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation


def _up_to(answer: list[int], ends: Collection[int]) -> list[int]:
    return answer[: next((i for i, token in enumerate(answer) if token in ends), len(answer))]
