"""The low-rank terms of many clients in a number of operations that does not depend on theirs."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable


class AddLowRankInBlocks(torch.autograd.Function):
    """`adapters.lora`'s sum, for tokens in `model.blocks`, with its gradients; the same arguments.

    With X, G the tokens' inputs and gradients in blocks, and A, B of each block's client:

        H = X Aᵀ        y += s H Bᵀ        U = s G B        ∂x = U A        ∂A = Σ Uᵀ X        ∂B = s Σ Gᵀ H

    The sums are over a client's blocks; H and U are zero at pads.
    """

    @staticmethod
    def forward(ctx, y, x, A, B, scale, blocks, keep, note):
        """Add the terms to y, in place."""
        dropped = blocks.gather(x if keep is None else x * keep)
        hidden = blocks.without_pads(torch.bmm(dropped, blocks.spread(A).transpose(1, 2)))
        up = blocks.spread(B).transpose(1, 2)
        if blocks.home is None:
            y.view(*hidden.shape[:2], -1).baddbmm_(hidden, up, alpha=scale)
        else:
            y.add_(blocks.scatter(torch.bmm(hidden, up)), alpha=scale)
        ctx.save_for_backward(x, A, B, hidden, keep)
        ctx.scale, ctx.blocks, ctx.note = scale, blocks, note
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """The gradients; or what ``note`` is told instead of those of A and B."""
        x, A, B, hidden, keep = ctx.saved_tensors
        scale, blocks = ctx.scale, ctx.blocks
        _, needs_x, needs_A, needs_B, *_ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = None
        of_y = blocks.gather(grad)
        grad_hidden = blocks.without_pads(torch.bmm(of_y, blocks.spread(B)).mul_(scale))
        if needs_x:
            grad_x = blocks.scatter(torch.bmm(grad_hidden, blocks.spread(A)))
            if keep is not None:
                grad_x.mul_(keep)
        dropped = x if keep is None or not needs_A else x * keep
        if ctx.note is not None:
            if needs_A:
                ctx.note("lora_A", blocks.scatter(grad_hidden), dropped)
            if needs_B:
                # What flows on may be added to this tensor in place.
                ctx.note("lora_B", grad * scale, blocks.scatter(hidden))
            return grad, grad_x, None, None, None, None, None, None
        if needs_B:
            grad_B = blocks.sums(torch.bmm(of_y.transpose(1, 2), hidden)).mul_(scale)
        if needs_A:
            grad_A = blocks.sums(torch.bmm(grad_hidden.transpose(1, 2), blocks.gather(dropped)))
        return grad, grad_x, grad_A, grad_B, None, None, None, None
