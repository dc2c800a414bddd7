"""A change of the frozen base itself, which a server makes of what factors of its adapter's rank cannot hold.

With W_0 the weight that was loaded, s LoRA's scale and F the change, everybody computes

    y = (W_0 + s F) x + s B A x

F is kept whole, so that rounds do not add up the rounding of the base's own dtype. To be sent it is a product
of thin factors, F = P Q; to be saved it becomes further rows of the adapter's A and columns of its B, which
PEFT loads as an adapter of a higher rank on the base as it was.
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedloom.errors import UserError
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import Row

UP, DOWN = ".fold_up", ".fold_down"
"""What follows a module's name in those of P ``[d_out, k]`` and Q ``[k, d_in]``."""

_SMALLEST = 1e-6
"""What of F is below this part of the whole is its rounding, in float32."""


def unchanged(adapter: Row) -> Row:
    """F before the first round: zero, for every module that has both factors in an adapter."""
    return {
        name_a.removesuffix(".lora_A.weight"): adapter[name_a].new_zeros(
            len(adapter[name_b]), adapter[name_a].shape[1]
        )
        for name_a, name_b in lora_pairs(adapter.keys())
    }


def folded(base: Row, factors: Row) -> Row:
    """F after a round.

    Args:
        base: F before, ``{module: tensor[d_out, d_in]}``.
        factors: P and Q of the round, by module.
    """
    modules = [name.removesuffix(UP) for name in factors if name.endswith(UP)]
    return base | {module: base[module] + factors[module + UP] @ factors[module + DOWN] for module in modules}


class FoldedBase:
    """The adapted layers' weights, with a change in them or as they were loaded."""

    def __init__(self, model: nn.Module):
        """Take a model whose adapted layers are as they were loaded; weights are copied once they change."""
        self._model = model
        self._layers = {m.name: (m.base, m.scale) for m in model.modules() if isinstance(m, StackedLora)}
        self._loaded: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}

    def check(self) -> None:
        """Make sure that a change can be folded into every adapted layer.

        Raises:
            UserError: A weight is quantised, or belongs to other layers too.
        """
        held = Counter(t.data_ptr() for m in self._model.modules() for t in m.parameters(recurse=False))
        for name, (layer, _) in self._layers.items():
            if not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point():
                raise UserError(
                    f"lora_aggregation: it changes the base's weights, and {name} has none that are "
                    "floating-point numbers; leave quantize out, or choose --lora_aggregation flexlora"
                )
            if held[layer.weight.data_ptr()] > 1:
                raise UserError(
                    f"lora_aggregation: it changes the base's weights, and {name} shares its own with "
                    "another layer; choose other target_modules, or --lora_aggregation flexlora"
                )

    @torch.no_grad()
    def set(self, base: Row) -> None:
        """Let the model's weights be W_0 + s F; nothing is done for those that are so already.

        Args:
            base: F, ``{module: tensor[d_out, d_in]}``; a module without one has the weight that was loaded.
        """
        for name in base.keys() | self._now.keys():
            if base.get(name) is self._now.get(name):
                continue
            layer, scale = self._layers[name]
            weight: Tensor = layer.weight  # type: ignore[assignment]
            loaded = self._loaded.setdefault(name, weight.detach().clone())
            if (change := base.get(name)) is None:
                weight.copy_(loaded)
                del self._now[name]
                continue
            along = change.T if isinstance(layer, Conv1D) else change
            wide = torch.promote_types(loaded.dtype, torch.float32)
            weight.copy_(loaded.to(wide) + scale * along.to(loaded.device, wide))
            self._now[name] = change


def with_factors(row: Row, base: Row) -> tuple[Row, int]:
    """An adapter that does by itself what it does beside a changed base.

    Args:
        row: The adapter.
        base: F, ``{module: tensor[d_out, d_in]}``.

    Returns:
        The adapter with the factors of F as further rows of A and columns of B, for a scale as it was; and
        how many there are, the same for all modules.
    """
    factors = {module: _factored(change) for module, change in base.items()}
    more = max((len(down) for _, down in factors.values()), default=0)
    found = dict(row)
    for name, t in row.items():
        module, _, kind = name.rpartition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            continue
        axis = 0 if kind == "A.weight" else 1
        found[name] = t.new_zeros([n + more * (i == axis) for i, n in enumerate(t.shape)])
        found[name].narrow(axis, 0, t.shape[axis]).copy_(t)
        if module in factors:
            factor = factors[module][1 - axis]
            found[name].narrow(axis, t.shape[axis], factor.shape[axis]).copy_(factor)
    return found, more


def _factored(
    change: Float[Tensor, "d_out d_in"],
) -> tuple[Float[Tensor, "d_out kept"], Float[Tensor, "kept d_in"]]:
    """Thin factors of F, as few as it has directions; where it has nearly all, F itself and the identity.

    A full SVD of a large layer takes seconds. A random projection finds a basis of what F maps to in a
    fraction of that (Halko et al., 2011, arXiv:0909.4061), tried with twice as many directions until one
    holds all of F.
    """
    wide = change.double()
    draws = torch.Generator().manual_seed(0)
    tried = 16
    while 2 * tried < min(change.shape):
        probes = torch.randn(change.shape[1], tried, generator=draws, dtype=torch.float64)
        basis, _ = torch.linalg.qr(wide @ probes.to(wide))
        inside = basis.T @ wide
        if torch.linalg.norm(wide - basis @ inside) <= _SMALLEST * torch.linalg.norm(wide):
            U, S, Vh = torch.linalg.svd(inside, full_matrices=False)
            kept = int((_SMALLEST * S[0] < S).sum()) if S[0] > 0 else 0
            root = S[:kept].sqrt()
            return (basis @ U[:, :kept] * root).to(change), (root[:, None] * Vh[:kept]).to(change)
        tried *= 2
    identity = torch.eye(min(change.shape), dtype=change.dtype, device=change.device)
    return (change, identity) if change.shape[1] <= change.shape[0] else (identity, change)
