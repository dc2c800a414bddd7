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

from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.federation.lora_aggregations import check_mean, pair_by_pair, product_weights
from fedloom.model.adapters.products import aligned, truncated_sum
from fedloom.model.bank import Row


def flexlora(*, aggregator: Aggregator) -> Aggregator:
    """Average in the space of products.

    Args:
        aggregator: What combines all that is no pair of factors; only the mean has a meaning.

    Raises:
        UserError: It is another.
    """
    check_mean("flexlora", "averages products", aggregator)

    def of_a_pair(changes: Changes, name_a: str, name_b: str) -> Row:
        before, deltas = changes.before, changes.deltas.tensors
        A = before[name_a] + deltas[name_a]  # [senders, rank, d_in]
        B = before[name_b] + deltas[name_b]  # [senders, d_out, rank]
        new_a, new_b = truncated_sum(A, B, product_weights(changes), rank=A.shape[1])
        # Only clients of unequal ranks have scales.
        new_a, new_b = aligned(new_a, new_b, before[name_a], keep_order=changes.scales is not None)
        return {name_a: new_a - before[name_a], name_b: new_b - before[name_b]}

    return pair_by_pair(of_a_pair)
