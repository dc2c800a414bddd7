"""Each example's gradient cut to a norm before they are added up, in one packed pass of many clients.

    DP-SGD            Abadi et al., 2016, arXiv:1607.00133      Σ_e g_e · min(1, C / ‖g_e‖)
    ghost clipping    Goodfellow, 2015, arXiv:1510.01799;  Li et al., 2022, arXiv:2110.05679
    book-keeping      Bu et al., 2023, arXiv:2210.00038         one backward pass for both

With x_t what enters a LoRA module at token t, d_t the gradient of what leaves it, h_t = A x_t and u_t =
s Bᵀ d_t, the gradients of example e are dA_e = Σ_{t in e} u_t x_tᵀ and dB_e = s Σ_{t in e} d_t h_tᵀ, all of
which the backward pass holds. So it keeps (u, x) and (d, h); from them come norms,

    ‖Σ_t a_t b_tᵀ‖² = Σ_{t,t'} ⟨a_t, a_t'⟩ ⟨b_t, b_t'⟩ = ‖aᵀ b‖²        whichever is less work

and then, with c_e = min(1, C / ‖g_e‖), the sum Σ_t c_{e(t)} a_t b_tᵀ is one product for each factor and
client: no example's gradient is ever kept, and there is no second backward pass. Heads and virtual tokens are
small: each example has a copy of them of its own, whose gradient is the example's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from fedloom.errors import UserError
from fedloom.model.bank import Row
from fedloom.model.layout import Batch
from fedloom.model.pack import Apart
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel
from fedloom.model.wave import Call, Examples

_MOST_AT_ONCE = 2**22
"""Numbers of the products of several examples, of which norms are taken together."""


def clipped_sums(
    model: StackedModel,
    leaves: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor],
    clients: Sequence[Sequence[Batch]],
    clip: float,
    dropout_seed: int | None = None,
) -> Row:
    """For each client the sum of its examples' gradients, each cut to a norm over all parameters.

    Args:
        model: The frozen base with stacked adapters.
        leaves: What trains, ``{name: tensor[clients, *shape]}``.
        frozen: Other adapter parameters, likewise.
        clients: Each client's batches, of which every one is an example, with a loss of its own.
        clip: C.
        dropout_seed: The run's seed; None turns dropout off.

    Returns:
        ``{name: tensor[clients, *shape]}``.

    Raises:
        UserError: The model's batches must run one after another.
    """
    owners = [k for k, batches in enumerate(clients) for _ in batches]
    # To the pass every example is a client: so whose each token is, is known in every module.
    # What all begin with is computed for each of them: if it were shared nobody could tell whose it is.
    layout = replace(model.layout, prefix=0)
    pack = build_pack([[batch] for batches in clients for batch in batches], layout)
    if isinstance(pack, Apart):
        raise UserError(
            "privacy: example needs all examples in one pass, and those of this model run one after another, "
            "since they are too long or depend on each other; choose another model, or a smaller max_length"
        )
    place = torch.tensor(owners, device=model.device)
    examples = Examples(tuple(owners), len(clients))
    parameters, copies = {}, {}
    for name, t in {**frozen, **leaves}.items():
        trains = name in leaves
        if ".lora_" in name:
            parameters[name] = t.detach().requires_grad_() if trains else t
        else:
            parameters[name] = t.detach().index_select(0, place).requires_grad_(trains)
            if trains:
                copies[name] = parameters[name]
    with model.wave.apart(examples):
        loss = model.losses(parameters, pack, dropout_seed).loss
        wanted = [parameters[name] for name in leaves]
        gradients = torch.autograd.grad(loss.sum(), wanted, allow_unused=True)
    of_copies = {}
    for name, g in zip(leaves, gradients, strict=True):
        if name in copies:
            of_copies[name] = torch.zeros_like(copies[name]) if g is None else g
        elif g is not None:
            raise RuntimeError(f"{name} has a gradient of which nobody can tell the examples apart")
    squares = torch.zeros(len(owners), dtype=torch.float64, device=model.device)
    for g in of_copies.values():
        squares += g.flatten(1).double().square().sum(1)
    for calls in examples.held.values():
        squares += squared_norms(calls)
    # A little less than C, as the sums below are rounded. A sum of Gram matrices may come out below 0.
    margin = 1 - 128 * max(torch.finfo(_wide(t)).eps for t in leaves.values())
    factors = (clip * margin / squares.clamp(min=0).sqrt()).clamp(max=1.0)
    # An example whose numbers are not finite adds nothing.
    factors = torch.where(squares.isfinite(), factors, 0.0)
    sums = {name: torch.zeros_like(t) for name, t in leaves.items()}
    for name, g in of_copies.items():
        shaped = factors.to(g).view(-1, *[1] * (g.ndim - 1))
        sums[name].index_add_(0, place, torch.where(shaped > 0, g * shaped, 0.0))
    for name, calls in examples.held.items():
        for left, right, lengths in calls:
            _add_products(sums[name], left, right, lengths, factors, owners)
    return sums


def _wide(t: Tensor) -> torch.dtype:
    """What norms and sums are computed in: in half precision a clipped gradient may exceed its clip."""
    return torch.promote_types(t.dtype, torch.float32)


def squared_norms(calls: Sequence[Call]) -> Float[Tensor, " examples"]:
    """``‖Σ_t a_t b_tᵀ‖²`` for each example, over all calls of a module."""
    # With the narrow side before the product, which is up to three times as fast.
    sides = [sorted((left, right), key=lambda side: side.shape[1]) for left, right, _ in calls]
    parts = [
        [side.to(_wide(side)).split(lengths) for side in both]
        for both, (*_, lengths) in zip(sides, calls, strict=True)
    ]
    narrow, wide = (
        [
            own[0] if len(own) == 1 else torch.cat(own)
            for own in zip(*(call[k] for call in parts), strict=True)
        ]
        for k in (0, 1)
    )
    m, n = narrow[0].shape[1], wide[0].shape[1]
    found = torch.zeros(len(wide), dtype=torch.float64, device=wide[0].device)
    products = wide[0].new_empty(min(len(wide), max(1, _MOST_AT_ONCE // (m * n))), m, n)
    waiting: list[int] = []
    for e, (a, b) in enumerate(zip(narrow, wide, strict=True)):
        if len(a) * (m + n) < m * n:
            # Terms of either sign, which may nearly cancel: float32 would lose what is left.
            a, b = a.double(), b.double()
            found[e] = ((a @ a.T) * (b @ b.T)).sum()
        else:
            torch.mm(a.T, b, out=products[len(waiting)])
            waiting.append(e)
        if waiting and (len(waiting) == len(products) or e == len(wide) - 1):
            found[waiting] = torch.linalg.vector_norm(products[: len(waiting)], dim=(1, 2)).double().square()
            waiting = []
    return found


def _add_products(
    total: Float[Tensor, "clients m n"],
    left: Float[Tensor, "tokens m"],
    right: Float[Tensor, "tokens n"],
    lengths: Sequence[int],
    factors: Float[Tensor, " examples"],
    owners: Sequence[int],
) -> None:
    """Add ``Σ_t c_{e(t)} a_t b_tᵀ`` to each client's row."""
    left, right = left.to(_wide(left)), right.to(_wide(right))
    repeats = torch.tensor(lengths, device=left.device)
    c = factors.to(left).repeat_interleave(repeats)[:, None]
    if not bool((factors > 0).all()):
        left, right = torch.where(c > 0, left, 0.0), torch.where(c > 0, right, 0.0)
    swapped = left.shape[1] > right.shape[1]  # with the narrow side before the product
    narrow, wide = (right * c, left) if swapped else (left * c, right)
    starts = list(accumulate(lengths, initial=0))
    for client in sorted(set(owners)):
        first, last = owners.index(client), len(owners) - owners[::-1].index(client)
        rows = slice(starts[first], starts[last])
        product = (narrow[rows].T @ wide[rows]).to(total)
        total[client] += product.T if swapped else product
