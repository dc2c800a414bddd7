"""Sums of low-rank products, in factors: the d_out × d_in matrices themselves are never built."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

_A, _B = ".lora_A.weight", ".lora_B.weight"

UP, DOWN = ".lora_up", ".lora_down"
"""What follows a module's name in those of P ``[d_out, k]`` and Q ``[k, d_in]``, a product that stands beside
B A and does not train; see `model.adapters.folding`."""


def lora_pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """PEFT's names of A and B, for every module that has both among some names; in order."""
    modules = [name.removesuffix(_A) for name in sorted(names) if name.endswith(_A)]
    return [(module + _A, module + _B) for module in modules if module + _B in names]


def product_norms(
    left: Float[Tensor, "senders d_out rank"], right: Float[Tensor, "senders rank d_in"]
) -> Float[Tensor, " senders"]:
    """‖L_k R_k‖_F from Gram matrices: ‖LR‖² = Σ (LᵀL) ∘ (RRᵀ)."""
    squares = ((left.mT @ left) * (right @ right.mT)).sum((1, 2))
    return squares.clamp(min=0).sqrt()


def truncated_sum(
    A: Float[Tensor, "senders rank d_in"],
    B: Float[Tensor, "senders d_out rank"],
    weights: Float[Tensor, " senders"],
    rank: int,
) -> tuple[Float[Tensor, "kept d_in"], Float[Tensor, "d_out kept"]]:
    """The best approximation of Σ_k weights_k B_k A_k by one product B A of a rank.

    Args:
        A: Down projections.
        B: Up projections.
        weights: Of the products.
        rank: Rows of the new A, and columns of the new B.

    Returns:
        A with orthonormal rows, and B. What the sum has no use for is zero in B. Both are of the dtype of
        ``A``; decompositions are computed in float64.
    """
    wide = torch.float64
    weighted = B.to(wide) * weights.to(B.device, wide).view(-1, 1, 1)
    left = weighted.movedim(0, 1).flatten(1)  # [d_out, senders · rank]
    new_b, new_a = truncated_product(left, A.to(wide).flatten(0, 1), rank)
    return new_a.to(A.dtype), new_b.to(A.dtype)


def truncated_product(
    left: Float[Tensor, "d_out many"], right: Float[Tensor, "many d_in"], rank: int
) -> tuple[Float[Tensor, "d_out kept"], Float[Tensor, "kept d_in"]]:
    """The best approximation of a product of factors by one of a rank.

    The product itself is built only where its factors are no smaller: of 50 clients' factors of rank 16, side
    by side, QR decompositions would take longer than all the rest.

    Args:
        left: In float64, in which decompositions are computed.
        right: Likewise.
        rank: Columns of the new left factor, and rows of the new right one.

    Returns:
        The left factor, zero where the product has no use for it, and the right one with orthonormal rows.
    """
    basis_out, core_out = _narrowed(left)
    basis_in, core_in = _narrowed(right.T)
    U, S, Vh = _leading(core_out @ core_in.T, rank)
    products, rows = min(rank, len(S)), min(rank, len(Vh))
    out, into = U[:, :products] * S[:products], Vh[:rows]
    new_left, new_right = left.new_zeros(len(left), rank), right.new_zeros(rank, right.shape[1])
    new_left[:, :products] = out if basis_out is None else basis_out @ out
    new_right[:rows] = into if basis_in is None else into @ basis_in.T
    return new_left, new_right


def _leading(
    core: Float[Tensor, "rows columns"], rank: int
) -> tuple[Float[Tensor, "rows left"], Float[Tensor, " some"], Float[Tensor, "right columns"]]:
    """At least the first ``rank`` singular vectors and values of a matrix, as far as it has them.

    Of a large matrix the leading few by subspace iteration (Halko, Martinsson & Tropp, 2011, arXiv:0909.4061,
    algorithm 4.4): the space of M Mᵀ M Mᵀ … Ω converges as the ratio of the first singular value left out to
    the last one wanted, so fast where clients began with one adapter. Where three steps show that it is slow,
    it goes on from the eigenvectors of M Mᵀ, which leave it one step. Taken is only what has converged,
    ‖M V − U S‖ ≤ 10⁻¹³ ‖M‖; elsewhere the whole matrix is decomposed.
    """
    block = rank + 8
    if min(core.shape) > 4 * block:
        numbers = torch.Generator().manual_seed(0)  # the same on every rank, and whatever was drawn before
        start = torch.randn(core.shape[1], block, generator=numbers, dtype=core.dtype).to(core.device)
        basis = torch.linalg.qr(core @ start).Q
        for step in range(8):
            basis = torch.linalg.qr(core @ torch.linalg.qr(core.T @ basis).Q).Q
            small, S, Vh = torch.linalg.svd(basis.T @ core, full_matrices=False)
            U = basis @ small
            apart = (core @ Vh[:rank].T - U[:, :rank] * S[:rank]).norm() / S.norm()
            if apart <= 1e-13 or not S.any():
                return U, S, Vh
            if step == 2 and apart > 1e-8:
                short = core if len(core) <= core.shape[1] else core.T
                leading = torch.linalg.eigh(short @ short.T).eigenvectors[:, -block:]
                basis = leading if short is core else torch.linalg.qr(core @ leading).Q
    # A layer may be narrower than the rank, and only then are directions needed that have no singular value.
    U, S, Vh = torch.linalg.svd(core, full_matrices=rank > min(core.shape))
    return U, S, Vh


def svd_of_product(
    left: Float[Tensor, "d_out rank"], right: Float[Tensor, "rank d_in"]
) -> tuple[Float[Tensor, "d_out kept"], Float[Tensor, " kept"], Float[Tensor, "kept d_in"]]:
    """U, S and Vᵀ of a product, which is never built; U and V are orthonormal where S is zero, too.

    Of the two signs of a direction that one is taken which is nearer to ``right``, the same on all machines.
    """
    (basis_out, core_out), (basis_in, core_in) = _narrowed(left), _narrowed(right.T)
    U, S, Vh = torch.linalg.svd(core_out @ core_in.T, full_matrices=False)
    U = U if basis_out is None else basis_out @ U
    Vh = Vh if basis_in is None else Vh @ basis_in.T
    signs = torch.where((Vh * right[: len(Vh)]).sum(1) < 0, -1.0, 1.0).to(right)
    return U * signs, S, signs[:, None] * Vh


def _narrowed(
    factor: Float[Tensor, "rows columns"],
) -> tuple[Float[Tensor, "rows columns"] | None, Float[Tensor, "some columns"]]:
    """An orthonormal basis of a factor's columns, and the factor in it; no basis where that saves nothing."""
    return torch.linalg.qr(factor) if factor.shape[1] < factor.shape[0] else (None, factor)


def aligned(
    A: Float[Tensor, "rank d_in"],
    B: Float[Tensor, "d_out rank"],
    like: Float[Tensor, "rank d_in"],
    *,
    keep_order: bool = False,
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """The same product B A in the factors whose A is nearest to another one.

    An orthogonal Q makes of A and B the factors Q A and B Qᵀ of the same product; this one is the solution of
    the orthogonal Procrustes problem (Schönemann, 1966, doi:10.1007/BF02289451), min_Q ‖Q A − like‖.

    Args:
        A: Down projection.
        B: Up projection.
        like: What A should be near to.
        keep_order: Change the signs of rows alone, so that their order stands.
    """
    overlap = like.double() @ A.double().T
    if keep_order:
        Q = torch.where(overlap.diagonal() < 0, -1.0, 1.0).double().diag()
    else:
        U, _, Vh = torch.linalg.svd(overlap)
        Q = U @ Vh
    return (Q @ A.double()).to(A.dtype), (B.double() @ Q.T).to(B.dtype)
