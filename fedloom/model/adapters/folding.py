"""A change of the frozen base itself, which a server makes of what factors of its adapter's rank cannot hold.

With W_0 the weight that was loaded, s LoRA's scale and F the change, everybody computes

    y = (W_0 + s F) x + s B A x

F is kept whole, so that rounds do not add up the rounding of the base's own dtype. To be sent it is a product
of thin factors, F = P Q; to be saved it becomes further rows of the adapter's A and columns of its B, which
PEFT loads as an adapter of a higher rank on the base as it was.

With a cap R on its rank (`--residual_rank`), F is P and Q alone, after every round the best approximation of
rank R of what they were and what the round adds; F itself is never built, and W_0 stays as it was, which may
then be quantised. With R at least the rank of the whole that is the same; with R = 0 there is no F.
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedloom.errors import UserError
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.products import DOWN, UP, lora_pairs, truncated_product
from fedloom.model.bank import Row, bytes_of

_SMALLEST = 1e-6
"""What of F is below this part of the whole is its rounding, in float32."""


def unchanged(adapter: Row, rank: int | None = None) -> Row:
    """F before the first round: zero, for every module that has both factors in an adapter.

    Args:
        adapter: Any adapter of the run.
        rank: The cap on the rank of F; None: there is none.

    Returns:
        ``{module: tensor[d_out, d_in]}``; with a cap P and Q of every module, of the rank R or that of the
        module where it is narrower.
    """
    found: Row = {}
    for name_a, name_b in lora_pairs(adapter.keys()):
        module, d_out, d_in = (
            name_a.removesuffix(".lora_A.weight"),
            len(adapter[name_b]),
            adapter[name_a].shape[1],
        )
        if rank is None:
            found[module] = adapter[name_a].new_zeros(d_out, d_in)
        elif rank:
            most = min(rank, d_out, d_in)
            found[module + UP] = adapter[name_a].new_zeros(d_out, most)
            found[module + DOWN] = adapter[name_a].new_zeros(most, d_in)
    return found


def folded(base: Row, factors: Row) -> Row:
    """F after a round.

    Args:
        base: F before, as `unchanged` has it.
        factors: P and Q of the round, by module.
    """
    after = dict(base)
    for module in (name.removesuffix(UP) for name in factors if name.endswith(UP)):
        up, down = factors[module + UP], factors[module + DOWN]
        if module in base:
            after[module] = base[module] + up @ down
        elif (before := base.get(module + UP)) is not None:
            left = torch.cat([before, up], 1).double()
            right = torch.cat([base[module + DOWN], down]).double()
            left, right = truncated_product(left, right, before.shape[1])
            after[module + UP], after[module + DOWN] = left.to(before), right.to(before)
    return after


def bytes_of_fold(base: Row, factors: Row) -> int:
    """Bytes that everybody is sent of a round's change: its factors, or those of all of F if they are less.

    Args:
        base: F after the round.
        factors: P and Q of the round, by module.
    """
    whole = {name: t for name, t in base.items() if name.endswith((UP, DOWN))}
    return min(bytes_of(factors), bytes_of(whole)) if whole else bytes_of(factors)


class FoldedBase:
    """The adapted layers' weights, with a change in them or as they were loaded; or with one beside them."""

    def __init__(self, model: nn.Module):
        """Take a model whose adapted layers are as they were loaded."""
        self._model = model
        self._stacked = {m.name: m for m in model.modules() if isinstance(m, StackedLora)}
        self._layers = {name: (m.base, m.scale) for name, m in self._stacked.items()}
        self._loaded: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}

    def check(self) -> None:
        """Make sure that a change can be folded into every adapted layer.

        Raises:
            UserError: A weight is quantised, or belongs to other layers too.
        """
        uses = Counter(t.data_ptr() for m in self._model.modules() for t in m.parameters(recurse=False))
        for name, (layer, _) in self._layers.items():
            if not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point():
                raise UserError(
                    f"lora_aggregation: it changes the base's weights, and {name} has none that are "
                    "floating-point numbers; leave quantize out, or keep the change beside them, as in "
                    "--residual_rank 16"
                )
            if uses[layer.weight.data_ptr()] > 1:
                raise UserError(
                    f"lora_aggregation: it changes the base's weights, and {name} shares its own with "
                    "another layer; choose other target_modules, or keep the change beside them, as in "
                    "--residual_rank 16"
                )

    @torch.no_grad()
    def set(self, base: Row) -> None:
        """Let the model's weights be W_0 + s F; nothing is done for those that are so already.

        Args:
            base: F, ``{module: tensor[d_out, d_in]}``; a module without one has the weight that was loaded.
                Where there are P and Q instead, they stand beside it.
        """
        for name, module in self._stacked.items():
            module.beside = (base[name + UP], base[name + DOWN]) if name + UP in base else None
        base = {name: t for name, t in base.items() if name in self._stacked}
        for name in base.keys() | self._now.keys():
            if base.get(name) is self._now.get(name):
                continue
            layer, scale = self._layers[name]
            weight: Tensor = layer.weight  # type: ignore[assignment]
            # Never written into: others may run on the weights that were loaded.
            loaded = self._loaded.setdefault(name, weight.detach())
            if (change := base.get(name)) is None:
                weight.data = loaded
                del self._now[name]
                continue
            along = change.T if isinstance(layer, Conv1D) else change
            wide = torch.promote_types(loaded.dtype, torch.float32)
            weight.data = (loaded.to(wide) + scale * along.to(loaded.device, wide)).to(loaded.dtype)
            self._now[name] = change


def with_factors(row: Row, base: Row) -> tuple[Row, int]:
    """An adapter that does by itself what it does beside a changed base.

    Args:
        row: The adapter.
        base: F, ``{module: tensor[d_out, d_in]}``, or P and Q.

    Returns:
        The adapter with the factors of F as further rows of A and columns of B, for a scale as it was; and
        how many there are, the same for all modules.
    """
    factors = {
        name.removesuffix(UP): (t, base[name.removesuffix(UP) + DOWN]) if name.endswith(UP) else _factored(t)
        for name, t in base.items()
        if not name.endswith(DOWN)
    }
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
