"""How a model can be run is found by trying, not by a table of names.

An architecture may mix sequences that share a pass, look at pads, pool over a whole text, or call an adapted
layer on something that is not its tokens. So before anything is trained a few short sequences of two clients
are run, every way that would be fast is compared with the model's own forward pass, batch by batch, and the
first that agrees is taken. The slowest way is that forward pass itself; so an architecture that nobody
thought of is slow, and right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedloom.errors import UserError
from fedloom.model.layout import Head, Layout
from fedloom.model.memory import free_bytes
from fedloom.model.trial_clients import Clients

log = logging.getLogger(__name__)

Logits = Callable[[Mapping[str, Tensor], Clients, Layout], Float[Tensor, "labels classes"]]
"""``(parameters, batches of each client, layout) -> logits`` where a label is predicted."""

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
_COARSE = 0.01
_SHARE_OF_FREE = 0.25


def ways(layout: Layout, packed: bool | None, whole_only: bool) -> Iterator[Layout]:
    """All ways to run a model, the fastest first.

    Args:
        layout: What is known of it already.
        packed: Whether packing is wanted; None: where it is right.
        whole_only: Trunk and head cannot be told apart.
    """
    if packed is not False and not whole_only and layout.together != 0:
        yield replace(layout, packed=True, head=Head.LABELS)
        if layout.classify:
            yield replace(layout, packed=True, head=Head.SEQUENCES)
    for together in dict.fromkeys((layout.together, 0)):
        if not whole_only:
            yield replace(layout, head=Head.LABELS, together=together)
        yield replace(layout, head=Head.MODEL, together=together)


@torch.no_grad()
def choose_way(
    logits: Logits,
    plain: Float[Tensor, "labels classes"],
    parameters: Mapping[str, Tensor],
    candidates: Sequence[Layout],
    clients: Clients,
    model: PreTrainedModel,
) -> Layout:
    """The first of several ways to run a stacked model that gives what the model itself gives.

    Args:
        logits: Runs the stacked model in a given way.
        plain: What the model's own forward pass says of the trial, batch by batch, before anything was put
            into it.
        parameters: Adapters of the two clients, from `two_adapters`.
        candidates: From `ways`; the last is the model's own forward pass on one batch at a time.
        clients: The trial.
        model: For its name and dtype.

    Raises:
        UserError: not even the last agrees with the model's own forward pass.
    """
    last = candidates[-1]
    labels = replace(last, head=Head.LABELS)
    frozen = {
        head: _distance(logits, {}, replace(way, virtual=0), clients, plain)
        for head, way in ((Head.MODEL, last), *(((Head.LABELS, labels),) if labels in candidates else ()))
    }
    noise = frozen[Head.MODEL][0]
    tolerance = _TOLERANCE.get(model.dtype, _COARSE + 4 * noise)
    if noise > max(tolerance, 5 * _COARSE if tolerance > _COARSE else 0):
        raise UserError(
            f"model {model.config.model_type}: it cannot be run with stacked adapters "
            f"({frozen[Head.MODEL][1]}); choose another architecture"
        )
    good_head = Head.LABELS in frozen and frozen[Head.LABELS][0] <= tolerance
    reference_way = labels if good_head else last
    with explained(model, virtual=last.virtual):
        reference = logits(parameters, clients, reference_way)
    reasons: list[str] = []
    for way in candidates:
        if way.head is Head.LABELS and not good_head:
            continue
        if way == reference_way:
            break
        apart, why = _distance(logits, parameters, way, clients, reference)
        if apart <= tolerance:
            break
        reasons.append(why)
    if reasons:
        kind = "packed" if way.packed else "batch by batch" if way.together == 0 else "padded, not packed"
        log.info("sequences run %s: %s", kind, reasons[0])
    return way


def _distance(
    logits: Logits, parameters: Mapping[str, Tensor], way: Layout, clients: Clients, expected: Tensor
) -> tuple[float, str]:
    """How far a way is from what is right (relative, of the worst label), and what is to be said of it."""
    try:
        found = logits(parameters, clients, way)
        if found.shape != expected.shape:
            return float("inf"), f"its logits have the shape {list(found.shape)}"
        apart = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
    except Exception as error:  # whatever an architecture does with input that it was not written for
        return float("inf"), str(error).partition("\n")[0]
    return float("inf") if apart.isnan() else float(apart), f"the trial differs by {float(apart):.2g}"


def tolerance_of(model: PreTrainedModel) -> float:
    """How far apart, relative, two ways to the same logits may be by rounding."""
    return _TOLERANCE.get(model.dtype, 5 * _COARSE)


@torch.no_grad()
def is_causal(run: Callable[[Tensor], Tensor], token: int, device: torch.device) -> bool:
    """Whether a token sees only what stands before it: change the last one, look at the first.

    Args:
        run: ``ids [rows, columns] -> states [rows, columns, width]``.
        token: A valid token id; the one before it is taken, too.
        device: The model's.
    """
    ids = torch.full((2, 3), token, device=device)
    ids[1, 2] = token - 1
    states = run(ids)
    return torch.allclose(states[0, 0], states[1, 0], rtol=0, atol=1e-6)


@contextmanager
def explained(model: PreTrainedModel, virtual: int = 0) -> Iterator[None]:
    """Say of a model whose own code fails that it does.

    Args:
        model: It ran without an adapter, where there are virtual tokens.
        virtual: Virtual tokens, which have an embedding and no id.
    """
    try:
        yield
    except Exception as error:
        dtype, why = str(model.dtype).removeprefix("torch."), str(error).partition("\n")[0][:200]
        if virtual:
            raise UserError(
                f"model {model.config.model_type}: its own forward pass fails where tokens have embeddings "
                f"and no ids, as virtual tokens do ({why}); choose --peft lora"
            ) from error
        raise UserError(
            f"model {model.config.model_type}: its own forward pass fails on a few short sequences "
            f"in {dtype} ({why}); try another --dtype, or another architecture"
        ) from error


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model of half precision compute in float32 where there is memory for it; its numbers stay the
    same.

    In bfloat16 a wrong way may be as near to the right one as rounding is.
    """
    halves = (torch.bfloat16, torch.float16)
    parameters = [p for p in model.parameters() if p.dtype in halves]
    buffers = [
        (m, n, b)
        for m in model.modules()
        for n, b in m._buffers.items()
        if b is not None and b.dtype in halves
    ]
    needed = 4 * sum(p.numel() for p in parameters)
    every = all(p.is_floating_point() for p in model.parameters())
    if not parameters or not every or needed > _SHARE_OF_FREE * free_bytes(parameters[0].device):
        yield
        return
    before = [p.data for p in parameters]
    for p in parameters:
        p.data = p.data.float()
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.float()
    try:
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
