"""q-FedAvg (Li et al., 2020, arXiv:1905.10497, algorithm 2): clients of a high loss count for more.

With L = 1 / η, η the clients' learning rate, F_k client k's loss, p_k its weight:

    h_k ← q F_k^(q − 1) ‖L Δ_k‖² + L F_k^q
    Δ ← Σ_k p_k F_k^q L Δ_k / Σ_k p_k h_k

With q = 0 it is the mean. The larger q, the more alike the clients' losses become, at the cost of the mean
loss. F_k is the mean loss while the client trained, where the paper has that of the server's model; with one
step in a round it is that of the step's batches. The paper draws clients by their weights and counts alike
those that it drew; here all count by p_k.
"""

from __future__ import annotations

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Aggregator, Changes
from fedloom.model.bank import Row


def qfedavg(q: float = 1.0, *, client_lr: float) -> Aggregator:
    """The mean by powers of the losses.

    Args:
        q: How much a client's loss counts.
        client_lr: η; there is one where there is a server.

    Raises:
        UserError: q is negative: it would be those of a low loss that count.
    """
    if q < 0:
        raise UserError(f"aggregator: qfedavg:{q:g} is negative; q must be at least 0, as in qfedavg:1")
    lipschitz = 1 / client_lr

    def combine(changes: Changes) -> Row:
        loss = changes.statistics["loss"].clamp(min=1e-10)  # a power below 0 of it is a number
        squares = (changes.deltas.map(lambda t: t.double()).norms().cpu() * lipschitz).square()
        h = q * loss ** (q - 1) * squares + lipschitz * loss**q
        shares = changes.weights * loss**q * lipschitz / (changes.weights * h).sum()
        return {name: torch.tensordot(shares.to(t), t, dims=1) for name, t in changes.deltas.tensors.items()}

    return combine
