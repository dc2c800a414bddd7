"""Small trials that tell how an architecture behaves, instead of a table of names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch, Layout
from fedloom.model.packing import build_pack

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@torch.no_grad()
def is_causal(trunk: nn.Module) -> bool:
    """Whether a token sees only what stands before it: change the last one, look at the first."""
    device = next(trunk.parameters()).device
    hidden = trunk(input_ids=torch.tensor([[5, 6, 7], [5, 6, 8]], device=device)).last_hidden_state
    return torch.allclose(hidden[0, 0], hidden[1, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def packs(hidden: Callable[..., Tensor], layout: Layout, device: torch.device) -> bool:
    """Whether packed sequences give the hidden states that padded rows give.

    Args:
        hidden: ``(parameters, pack, layout) -> [rows, columns, width]``.
        layout: The model's layout; its ``packed`` is ignored.
        device: The model's.
    """
    padded = trial_states(hidden, replace(layout, packed=False), device)
    try:
        packed = trial_states(hidden, replace(layout, packed=True), device)
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        log.info("sequences are padded, not packed: %s", error)
        return False
    apart = (packed - padded).norm() / padded.norm()
    same = bool(apart <= tolerance_of(packed.dtype))
    if not same:
        log.info("sequences are padded, not packed: the trial differs by %.2g", float(apart))
    return same


@torch.no_grad()
def trial_states(hidden: Callable[..., Tensor], layout: Layout, device: torch.device) -> Tensor:
    """What ``hidden`` gives for two short sequences where labels are predicted, ``[labels, width]``."""
    sequences = [Tokens([5, 6, 7, 8, 9], 4, 0), Tokens([5, 6, 9], 2, 0)]
    trial = replace(layout, classify=False, prefix=1)
    pack = build_pack([[Batch(sequences, 1.0)]], trial).to(device)
    out = hidden({}, pack, trial)
    return out.reshape(-1, out.shape[-1])[pack.sources]


def tolerance_of(dtype: torch.dtype) -> float:
    """How far apart, relative, two ways to the same hidden states may be."""
    return _TOLERANCE.get(dtype, 0.03)
