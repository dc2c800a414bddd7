"""Stacked prompts: virtual tokens that stand before every sequence of a client.

Prompt tuning (Lester et al., 2021, arXiv:2104.08691) learns the virtual tokens' embeddings;
p-tuning (Liu et al., 2021, arXiv:2103.10385) learns an encoder that makes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

PROMPT = "prompt_embeddings"
"""Name under which PEFT saves the virtual tokens, learnt or made by the encoder."""

_ENCODER = "prompt_encoder"


def virtual_tokens(parameters: Mapping[str, Tensor]) -> Float[Tensor, "clients virtual width"] | None:
    """Each client's virtual tokens, differentiable in its parameters; None where there are none."""
    if PROMPT in parameters:
        return parameters[PROMPT]
    if f"{_ENCODER}.embedding.weight" not in parameters:
        return None
    x = parameters[f"{_ENCODER}.embedding.weight"]
    for layer in (0, 2, 4):
        weight = parameters[f"{_ENCODER}.mlp_head.{layer}.weight"]
        bias = parameters[f"{_ENCODER}.mlp_head.{layer}.bias"]
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        x = x if layer == 4 else x.relu()
    return x


def as_saved(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row as PEFT saves it: p-tuning's encoder is replaced by the virtual tokens that it makes."""
    stacked = {name: t[None] for name, t in row.items()}
    made = virtual_tokens(stacked) if PROMPT not in row else None
    kept = {name: t for name, t in row.items() if not name.startswith(_ENCODER)}
    return kept if made is None else {**kept, PROMPT: made[0]}
