"""What a change of LoRA's factors tells of the text it was trained on: the span of a layer's inputs.

    DAGER    Petrov et al., 2024, arXiv:2405.15586

With x_t what enters a LoRA module at token t and d_t the gradient of what leaves it, the factors' gradients
are dA = Σ_t (s Bᵀ d_t) x_tᵀ and dB = s Σ_t d_t (A x_t)ᵀ. So the rows of dA are sums of the x_t, and those of
dB sums of the A x_t. In the first layer x_t is a function of the token (and perhaps its place) alone, and the
embedding is frozen and known: an attacker tries the whole vocabulary, and a token was there if it lies in the
span of the rows. As long as a text has fewer different tokens than the rows have dimensions that is exact,
from a step of SGD; beyond, no token lies in the span, but those that were there are still the nearest where
the rows have fewer dimensions than an embedding. Modules with one input, such as query and value, give rows
of one span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING = 1e-5
"""Of float32's sums: what is smaller, beside the largest singular value, is none. Of half precision's sums it
is what one number is rounded by."""


class Span(NamedTuple):
    """What one change tells of the features of the tokens that were there.

    Attributes:
        basis: Orthonormal, of a space in which they lie, ``[rank, features]``, in float64.
        features: Makes them of a layer's input, ``[features, d_in]``; None: they are it.
    """

    basis: Tensor
    features: Tensor | None = None

    @property
    def tells(self) -> bool:
        """Whether it is neither nothing nor all directions."""
        return 0 < len(self.basis) < self.basis.shape[1]


def span_of(
    rows: Float[Tensor, "rows features"],
    features: Tensor | None = None,
    computed_in: torch.dtype = torch.float32,
) -> Span:
    """The span of sums of features.

    Args:
        rows: The sums.
        features: See `Span`.
        computed_in: In what precision whoever made the sums computed.
    """
    rounding = max(_ROUNDING, torch.finfo(computed_in).eps)
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((values > rounding * values[0]).sum()) if bool(values[0] > 0) else 0
    return Span(basis[:rank], features)


def distances(
    inputs: Float[Tensor, "candidates d_in"], spans: Sequence[Span]
) -> Float[Tensor, " candidates"]:
    """How far each candidate's features are from a span, relative to their length; of all spans the largest.

    A span of every direction, or of none, says nothing: the distance is then 1.
    """
    found = []
    for basis, features in (span for span in spans if span.tells):
        x = inputs.double() if features is None else inputs.double() @ features.double().T
        outside = x - (x @ basis.T) @ basis
        found.append(outside.norm(dim=1) / x.norm(dim=1).clamp(min=1e-30))
    return torch.stack(found).amax(0) if found else inputs.new_ones(len(inputs), dtype=torch.float64)
