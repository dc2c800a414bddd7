"""FlexLoRA (Bai et al., 2024, arXiv:2402.11505): the products are averaged, and factored anew by SVD.

    W ← Σ_k p_k B_k A_k;   U S Vᵀ ← SVD(W);   B ← U_r S_r,   A ← V_rᵀ

Of all products of rank r this one is nearest to the mean of the clients' products, which the mean of the
factors is not. It is exact where the sum has a rank of at most r: one client, or a single A for all (then
there is no A to combine, and B is averaged). W is never built: with the clients' factors side by side, W =
[p_k B_k] · [A_k], two QR decompositions leave an SVD of K r × K r numbers. A's rows are orthonormal, so that
no direction is lost where the sum has a smaller rank.

SVD leaves the signs open, and puts the new factors into another basis than the old ones. Whatever knows the
factors one number at a time (a server optimiser's moments, SCAFFOLD's control variates, what a codec lost)
would be of no use in it, and would depend on the machine. So of all factors of the product that differ by a
rotation those are taken whose A is nearest to the one before. Where clients have unequal ranks only signs are
chosen: they are handed the first rows, those of the largest weight.
"""

from __future__ import annotations

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.model.adapters.products import aligned, truncated_sum
from fedloom.model.bank import AdapterBank, Row


def flexlora(*, aggregator: Aggregator) -> Aggregator:
    """Average in the space of products.

    Args:
        aggregator: What combines all that is no pair of factors; only the mean has a meaning.

    Raises:
        UserError: It is another.
    """
    if aggregator is not weighted_mean:
        raise UserError(
            "lora_aggregation: flexlora averages products, and takes no aggregator but mean; leave out "
            "--aggregator, or choose --lora_aggregation factors"
        )

    def combine(changes: Changes) -> Row:
        before, deltas, weights = changes.before, changes.deltas.tensors, changes.weights
        factored = {name for pair in changes.pairs for name in pair}
        rest = AdapterBank({name: t for name, t in deltas.items() if name not in factored})
        change = weighted_mean(Changes(before, rest, weights))
        products = weights if changes.scales is None else weights * changes.scales
        for name_a, name_b in changes.pairs:
            A = before[name_a] + deltas[name_a]  # [senders, rank, d_in]
            B = before[name_b] + deltas[name_b]  # [senders, d_out, rank]
            new_a, new_b = truncated_sum(A, B, products, rank=A.shape[1])
            # Only clients of unequal ranks have scales.
            ordered = changes.scales is not None
            new_a, new_b = aligned(new_a, new_b, before[name_a], keep_order=ordered)
            change |= {name_a: new_a - before[name_a], name_b: new_b - before[name_b]}
        return change

    return combine
