"""Stacked LoRA: one frozen linear layer, one low-rank term per client.

LoRA (Hu et al., 2021, arXiv:2106.09685): ``y = W x + (alpha / r) B A x``. ``W x`` is computed once
for the tokens of all clients of the wave; each client's own term is added to its own segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from fedloom.model.adapters.low_rank_blocks import AddLowRankInBlocks
from fedloom.model.adapters.products import DOWN, UP
from fedloom.model.blocks import Blocks
from fedloom.model.wave import Wave


def bounds_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """``[2, 3] -> [(0, 2), (2, 5)]``: where each segment starts and ends."""
    return list(pairwise(accumulate(lengths, initial=0)))


def frozen_weight(layer: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """A frozen linear layer's weight, dequantised where bitsandbytes has quantised it."""
    weight = dequantize_module_weight(layer).detach()
    return weight.T if isinstance(layer, Conv1D) else weight


class _AddLowRank(torch.autograd.Function):
    """``y[segment k] += scale * (keep * x)[segment k] A_kᵀ B_kᵀ``, in place, with its gradients.

    Written by hand because autograd's own path makes five passes over ``[tokens, features]`` where
    two do: it would concatenate the segments, scale, add, and sum the two gradients of ``x``.
    """

    @staticmethod
    def forward(ctx, y, x, A, B, scale, bounds, keep, note):
        dropped = x if keep is None else x * keep
        hidden = x.new_empty(x.shape[0], A.shape[1])
        for k, (start, end) in enumerate(bounds):
            torch.mm(dropped[start:end], A[k].T, out=hidden[start:end])
            y[start:end].addmm_(hidden[start:end], B[k].T, alpha=scale)
        ctx.save_for_backward(x, A, B, hidden, keep)
        ctx.scale, ctx.bounds, ctx.note = scale, bounds, note
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, A, B, hidden, keep = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        if ctx.note is not None:
            return grad, _note(ctx, grad, grad_x), None, None, None, None, None, None
        grad_A = torch.empty_like(A) if ctx.needs_input_grad[2] else None
        grad_B = torch.empty_like(B) if ctx.needs_input_grad[3] else None
        dropped = x if keep is None or grad_A is None else x * keep
        for k, (start, end) in enumerate(ctx.bounds):
            g = grad[start:end]
            grad_hidden = torch.mm(g, B[k]).mul_(ctx.scale)
            if grad_B is not None:
                torch.mm(g.T, hidden[start:end], out=grad_B[k]).mul_(ctx.scale)
            if grad_A is not None:
                torch.mm(grad_hidden.T, dropped[start:end], out=grad_A[k])
            if grad_x is not None:
                torch.mm(grad_hidden, A[k], out=grad_x[start:end])
        if grad_x is not None and keep is not None:
            grad_x.mul_(keep)
        return grad, grad_x, grad_A, grad_B, None, None, None, None


def _note(ctx: Any, grad: Tensor, grad_x: Tensor | None) -> Tensor | None:
    """The backward pass that keeps what the factors' gradients are made of; fills the gradient of x."""
    x, A, B, hidden, keep = ctx.saved_tensors
    grad_hidden = torch.empty_like(hidden)
    for k, (start, end) in enumerate(ctx.bounds):
        torch.mm(grad[start:end], B[k], out=grad_hidden[start:end]).mul_(ctx.scale)
        if grad_x is not None:
            torch.mm(grad_hidden[start:end], A[k], out=grad_x[start:end])
    if ctx.needs_input_grad[2]:
        ctx.note("lora_A", grad_hidden, x if keep is None else x * keep)
    if ctx.needs_input_grad[3]:
        # What flows on may be added to this tensor in place.
        ctx.note("lora_B", grad * ctx.scale, hidden)
    return grad_x if grad_x is None or keep is None else grad_x.mul_(keep)


def add_low_rank(
    y: Float[Tensor, "tokens d_out"],
    x: Float[Tensor, "tokens d_in"],
    A: Float[Tensor, "clients rank d_in"],
    B: Float[Tensor, "clients d_out rank"],
    scale: float,
    lengths: Sequence[int],
    keep: Float[Tensor, "tokens d_in"] | None = None,
    note: Callable[[str, Tensor, Tensor], None] | None = None,
    blocks: Blocks | None = None,
) -> Float[Tensor, "tokens d_out"]:
    """Add each client's low-rank term to its segment of ``y``, in place.

    Args:
        y: The frozen layer's output; overwritten.
        x: The frozen layer's input, client by client.
        A: Down projections, in the compute dtype of ``x``.
        B: Up projections.
        scale: LoRA's ``alpha / r``.
        lengths: Tokens of each client; they sum to ``tokens``.
        keep: Dropout factors of ``x``: 0, or 1 / (1 - p).
        note: ``(factor, a, b)``: is told, instead of the gradients of A and B, what they are made of,
            Σ_t a_t b_tᵀ; see `model.per_example`.
        blocks: ``lengths`` in blocks, for all clients at once; None: one client after another.
    """
    if blocks is not None:
        return AddLowRankInBlocks.apply(y, x, A, B, scale, blocks, keep, note)
    return _AddLowRank.apply(y, x, A, B, scale, bounds_of(lengths), keep, note)


class StackedLora(nn.Module):
    """A frozen linear layer with one LoRA term per client of the current wave.

    Takes the place of any module that maps ``[..., d_in]`` to ``[..., d_out]``: ``nn.Linear``,
    bitsandbytes' 4- and 8-bit linears, GPT-2's ``Conv1D``, and fused projections such as BLOOM's
    ``query_key_value``.

    Attributes:
        base: The frozen layer; within a pass it is given ``[tokens, d_in]``.
        name: The adapter's name as PEFT saves it, without ``.lora_A.weight``.
        scale: ``alpha / r``.
        dropout: Probability with which an input of the low-rank term is dropped.
        behind_trunk: Whether it belongs to the head, and is its frozen base while the trunk runs.
        beside: P ``[d_out, k]`` and Q ``[k, d_in]`` of a change of the frozen layer that is not in its
            weight, ``scale * P Q``; see `model.adapters.folding`.
    """

    behind_trunk = False
    beside: tuple[Tensor, Tensor] | None = None

    def __init__(self, base: nn.Module, name: str, scale: float, dropout: float, wave: Wave):
        super().__init__()
        self.base = base
        self.name, self.scale, self.dropout = name, scale, dropout
        self._wave = wave

    @property
    def weight(self) -> Tensor:
        """The frozen layer's; some architectures look at its dtype, or multiply with it themselves."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``base(x)`` plus each client's low-rank term.

        Args:
            x: ``[rows, columns, d_in]``, client by client.
            *args: What else the architecture gives to the frozen layer.
            **kwargs: The same, by name.

        Raises:
            NotPerClient: ``x`` cannot be shared out among the clients of the pass.
        """
        wave = self._wave
        A = wave.parameters.get(f"{self.name}.lora_A.weight")
        if A is None or (self.behind_trunk and not wave.in_head):
            return self._changed(self.base(x, *args, **kwargs), x)
        B = wave.parameters[f"{self.name}.lora_B.weight"]
        flat = x.reshape(-1, x.shape[-1])
        # Of flat tokens, so that what is added to in place is no view: autograd would copy a view's gradient.
        y = self._changed(self.base(flat, *args, **kwargs), flat)
        # One row that stands for all clients is one product for all tokens.
        shared = A.stride(0) == B.stride(0) == 0
        lengths = (flat.shape[0],) if shared else wave.lengths(x, self.name)
        note = None
        if (examples := wave.examples) is not None and not shared:
            own, lengths = lengths, examples.by_client(lengths)

            def note(factor: str, left: Tensor, right: Tensor) -> None:
                examples.note(f"{self.name}.{factor}.weight", left, right, own)

        if (Q := wave.parameters.get(self.name + DOWN)) is not None:  # a client's own change of the base
            P = wave.parameters[self.name + UP]
            blocks = wave.in_blocks(lengths, Q.shape[1], x.device)
            y = add_low_rank(y, flat, Q.to(x.dtype), P.to(x.dtype), self.scale, lengths, blocks=blocks)
        keep = wave.keep(flat, self.dropout)
        blocks = None if shared else wave.in_blocks(lengths, A.shape[1], x.device)
        y = add_low_rank(y, flat, A.to(x.dtype), B.to(x.dtype), self.scale, lengths, keep, note, blocks)
        return y.view(*x.shape[:-1], -1)

    def _changed(self, y: Tensor, x: Tensor) -> Tensor:
        """The frozen layer's output with what its change adds to it."""
        if self.beside is None:
            return y
        up, down = (factor.to(x.dtype) for factor in self.beside)
        return y + self.scale * (x @ down.T) @ up.T
