"""Cross entropy where there is a label, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Callable[[Tensor], Tensor]
"""``hidden [labels, width] -> logits [labels, classes]``."""

_CHUNK_NUMBERS = 1 << 25  # logits of one chunk: 128 MiB in float32


class _TokenLosses(torch.autograd.Function):
    """Cross entropy per label; the gradient of the hidden states is taken chunk by chunk on the way.

    The logits of a whole pass (labels x vocabulary) are the largest tensor there would be. They
    are never held together: each chunk's gradient is linear in one number per label, so it can be
    taken at once and scaled on the way back.
    """

    @staticmethod
    def forward(ctx, hidden, targets, head, chunk):
        wants_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if wants_grad else None
        losses, correct = [], []
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            h, t = hidden[part].detach(), targets[part]
            with torch.set_grad_enabled(wants_grad):
                logits = head(h.requires_grad_(wants_grad))
            scores = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
            top, best = scores.max(-1)
            exps = (scores - top[:, None]).exp_()
            total = exps.sum(-1)
            target = t[:, None]
            losses.append(total.log() + top - scores.gather(1, target)[:, 0])
            correct.append(best == t)
            if grad is not None:
                slope = exps.div_(total[:, None])
                slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
                (grad[part],) = torch.autograd.grad(logits, h, slope.to(logits.dtype))
        ctx.save_for_backward(grad)
        every_correct = torch.cat(correct)
        ctx.mark_non_differentiable(every_correct)
        return torch.cat(losses), every_correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses, _):
        (grad,) = ctx.saved_tensors
        return grad * grad_losses[:, None].to(grad.dtype), None, None, None


def token_losses(
    hidden: Float[Tensor, "labels width"], targets: Int[Tensor, " labels"], head: Head, vocabulary: int
) -> tuple[Float[Tensor, " labels"], Bool[Tensor, " labels"]]:
    """Cross entropy of each label under a frozen head, and whether the likeliest token is the right one.

    Args:
        hidden: The trunk's output at the positions that predict a label.
        targets: Token ids.
        head: Frozen; its parameters get no gradient.
        vocabulary: Logits per label, for the size of a chunk.
    """
    return _TokenLosses.apply(hidden, targets, head, max(1, _CHUNK_NUMBERS // vocabulary))


def class_losses(
    logits: Float[Tensor, "labels classes"], targets: Int[Tensor, " labels"]
) -> tuple[Float[Tensor, " labels"], Int[Tensor, " labels"]]:
    """Cross entropy of each sequence's class, through autograd (the head trains too); the likeliest class."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(scores, targets, reduction="none"), logits.argmax(-1)
