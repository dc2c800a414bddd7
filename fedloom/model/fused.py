"""Elementwise parts of layers, with their gradients by hand.

On a CPU the products of a small model leave little room: each pass over ``[tokens, hidden]`` that autograd
adds costs as much as a tenth of a product. These do what transformers' own code does in about half the
passes. A part is put in only where a trial shows that it gives what the original gives.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedloom.model.wave import replace_module

_ROTARY = "apply_rotary_pos_emb"
_BLOCK = 1 << 20  # numbers; smaller blocks take longer
_FAR = torch.linspace(-30, 30, 601)


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        weighted = grad * weight
        along = (weighted * x).sum(-1, keepdim=True, dtype=scale.dtype)
        along.mul_(scale.pow(3)).div_(-x.shape[-1])
        out = torch.mul(weighted, scale, out=weighted)
        return out.addcmul_(x, along.to(x.dtype)), None, None


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich, 2019, arXiv:1910.07467), frozen."""

    def __init__(self, weight: nn.Parameter, eps: float):
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``x / rms(x) * weight`` over the last axis."""
        # A GPU has one kernel for it, and one for the way back.
        if hidden_states.is_cuda and self.weight.dtype == hidden_states.dtype:
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return _RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)


class _SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        # silu is computed again: keeping it would cost a fourth of the pass's memory.
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer, 2020, arXiv:2002.05202) with the names of the module whose place it takes."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate_proj: nn.Module = mlp.get_submodule("gate_proj")
        self.up_proj: nn.Module = mlp.get_submodule("up_proj")
        self.down_proj: nn.Module = mlp.get_submodule("down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """``down(silu(gate(x)) * up(x))``."""
        return self.down_proj(_SwiGLUFunction.apply(self.gate_proj(x), self.up_proj(x)))


class _GELUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _in_blocks(lambda out, x: torch.ops.aten.gelu.out(x, out=out), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _in_blocks(
            lambda out, g, x: torch.ops.aten.gelu_backward.grad_input(g, x, grad_input=out), grad, x
        )


def _in_blocks(write: Callable[..., object], *tensors: Tensor) -> Tensor:
    """``write(out, *tensors)`` of an elementwise function, in blocks of one size, whatever that of the pass.

    oneDNN, which computes torch's GELU on a CPU, keeps what it has compiled for every shape that it sees.
    Each pass would leave some of that amid the memory of its activations, and the next one needs more.
    """
    like = tensors[0]
    flat = [t.reshape(-1) for t in tensors]
    out = like.new_empty(like.numel())
    last = max(like.numel() - _BLOCK, 0)  # overlaps the one before it
    for start in (*range(0, last, _BLOCK), last):
        block = slice(start, start + _BLOCK)
        write(out[block], *(t[block] for t in flat))
    return out.view_as(like)


class GELU(nn.Module):
    """Gaussian error linear unit (Hendrycks & Gimpel, 2016, arXiv:1606.08415), the exact one."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * Φ(x)``."""
        return F.gelu(x) if x.is_cuda else _GELUFunction.apply(x)


class _RotateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        width, half = cos.shape[-1], cos.shape[-1] // 2
        # Some architectures turn a part of each head: as wide as the cosines are.
        out = x * cos if width == x.shape[-1] else torch.cat([x[..., :width] * cos, x[..., width:]], -1)
        out[..., :half].addcmul_(x[..., half:width], sin[..., :half], value=-1)
        out[..., half:width].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        width, half = cos.shape[-1], cos.shape[-1] // 2
        full = width == grad.shape[-1]
        out = grad * cos if full else torch.cat([grad[..., :width] * cos, grad[..., width:]], -1)
        out[..., :half].addcmul_(grad[..., half:width], sin[..., half:])
        out[..., half:width].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return out, None, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864), as transformers calls it.

    Args:
        q: Queries ``[rows, heads, columns, dim]``.
        k: Keys.
        cos: Of the angles, ``[rows, columns, width]``; where width < dim, the rest of each head stays as it
            is.
        sin: Of the angles.
        unsqueeze_dim: Where the heads' axis goes.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _RotateFunction.apply(q, cos, sin), _RotateFunction.apply(k, cos, sin)


@torch.no_grad()
def fuse(model: nn.Module) -> None:
    """Replace the norms, gated MLPs and GELUs of ``model`` that ours equal, in place."""
    # Not a layer's own dtype: a quantised one's is that of its packed weight.
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for name, module in list(model.named_modules()):
        ours: nn.Module
        # A norm that takes a gate beside its input is another function.
        if len(inspect.signature(module.forward).parameters) != 1:
            continue
        if hasattr(module, "variance_epsilon") and isinstance(getattr(module, "weight", None), nn.Parameter):
            ours, width = RMSNorm(module.weight, module.variance_epsilon), module.weight.shape[0]
        elif _is_gated(module):
            ours, width = GatedMLP(module), module.get_submodule("gate_proj").in_features
        elif "gelu" in type(module).__name__.lower() and not list(module.parameters()):
            # Far out too, where a clipped one differs, and to a precision that shows an approximated one.
            if torch.allclose(GELU()(_FAR), module(_FAR), atol=1e-5):
                replace_module(model, name, GELU())
            continue
        else:
            continue
        device = next(module.parameters()).device
        trial = torch.linspace(-1, 1, 2 * width, dtype=dtype, device=device).view(1, 2, -1)
        try:
            theirs = module(trial)
        except Exception:
            continue
        if _alike(ours(trial), theirs):
            replace_module(model, name, ours)


def _is_gated(module: nn.Module) -> bool:
    return all(
        isinstance(getattr(module, name, None), nn.Linear) for name in ("gate_proj", "up_proj", "down_proj")
    )


def _alike(ours: Tensor, theirs: object) -> bool:
    if not isinstance(theirs, Tensor) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    tolerance = 1e-5 if theirs.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((ours - theirs).norm() <= tolerance * theirs.norm())


def fusable_rotary(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """The modules of source code that rotate queries and keys as `rotate` does.

    Args:
        model: Whose source code.
        dtype: Of queries and keys, beside float32.
    """
    found = sorted({type(module).__module__ for module in model.modules()})
    return [name for name in found if _rotates_alike(getattr(sys.modules[name], _ROTARY, None), dtype)]


def _rotates_alike(theirs: Callable[..., tuple[Tensor, Tensor]] | None, dtype: torch.dtype) -> bool:
    """Whether whole heads are turned alike, and a part of each, where that function takes such angles."""
    if theirs is None:
        return False
    keys = list(inspect.signature(theirs).parameters.values())[1:2]
    if not keys or keys[0].default is not inspect.Parameter.empty:
        return False  # where they may be left out, queries alone are turned, too
    for of_rows, of_angles in {(torch.float32, torch.float32), (dtype, dtype), (dtype, torch.float32)}:
        for width in (8, 4):
            q, k = torch.linspace(-1, 1, 96).view(1, 2, 6, 8), torch.linspace(-2, 1, 48).view(1, 1, 6, 8)
            angles = torch.linspace(0, 3, 6 * width).view(1, 6, width)
            given = q.to(of_rows), k.to(of_rows), angles.cos().to(of_angles), angles.sin().to(of_angles)
            try:
                rotated = theirs(*given)
            except Exception:  # another signature, or never called with such angles
                if width == 8:
                    return False
                continue
            if not all(map(_alike, rotate(*given), rotated)):
                return False
    return True


@contextmanager
def rotating(sources: list[str]) -> Iterator[None]:
    """Let the attention layers in these modules of source code use `rotate`."""
    before = {name: getattr(sys.modules[name], _ROTARY) for name in sources}
    for name in sources:
        setattr(sys.modules[name], _ROTARY, rotate)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(sys.modules[name], _ROTARY, function)
