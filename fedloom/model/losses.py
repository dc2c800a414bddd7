"""What a pass says of each client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedloom.model.pack import Pack, Pairs


@dataclass(frozen=True)
class Losses:
    """What a pass says of each client.

    Attributes:
        loss: The client's own weighted sum over its labels, or preferences; differentiable.
        correct: Labels predicted right; preferences of which the preferred answer has the larger reward.
        labels: Labels in the pass, or preferences.
        predicted: The likeliest class per label, client by client; None in language modelling.
        margins: For each preference, client by client, log π(chosen) − log π(rejected) less the reference's,
            in nats, 0 where it is no more than what sums are rounded by; None where there are none.
    """

    loss: Float[Tensor, " clients"]
    correct: Int[Tensor, " clients"]
    labels: Int[Tensor, " clients"]
    predicted: Int[Tensor, " every"] | None
    margins: Float[Tensor, " pairs"] | None = None


def by_client(
    per_label: Float[Tensor, " labels"],
    correct: Bool[Tensor, " labels"],
    predicted: Int[Tensor, " labels"] | None,
    pack: Pack,
) -> Losses:
    """Add up what was found at the labels of a pass, for each client its own."""
    clients = len(pack.label_units)
    weighted = per_label * pack.weights.to(per_label.dtype)
    zeros = torch.zeros(clients, dtype=per_label.dtype, device=per_label.device)
    counts = torch.zeros(clients, dtype=torch.long, device=per_label.device)
    return Losses(
        loss=zeros.index_add(0, pack.label_clients, weighted),
        correct=counts.index_add(0, pack.label_clients, correct.long()),
        labels=torch.tensor(pack.label_units, device=per_label.device),
        predicted=predicted,
    )


def by_client_compared(
    per_label: Float[Tensor, " labels"], pairs: Pairs, clients: int, beta: float
) -> Losses:
    """The loss of DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7) for each client its own.

    Of a preference it is -log σ(β m) with its margin m = log π(y_w|x) − log π_ref(y_w|x) − log π(y_l|x) +
    log π_ref(y_l|x), sums over the tokens of the answers; β m is the difference of the answers' rewards.

    Args:
        per_label: Cross entropy of each label of the pass.
        pairs: The preferences of the pass.
        clients: How many clients are in it.
        beta: Of the loss: the larger, the closer it holds the model to the base.
    """
    zeros = torch.zeros(len(pairs.clients), dtype=per_label.dtype, device=per_label.device)
    ratios = zeros.index_add(0, pairs.labels, -per_label * pairs.signs)
    margins = ratios - pairs.references.to(per_label.dtype)
    # An adapter that is still the base's equal prefers nothing; by what sums are rounded is no preference.
    rounding = 8 * torch.finfo(per_label.dtype).eps * zeros.index_add(0, pairs.labels, per_label.detach())
    weighted = F.softplus(-beta * margins) * pairs.weights.to(per_label.dtype)
    counts = torch.zeros(clients, dtype=torch.long, device=per_label.device)
    preferred = margins.detach() * (margins.detach().abs() > rounding)
    return Losses(
        loss=per_label.new_zeros(clients).index_add(0, pairs.clients, weighted),
        correct=counts.index_add(0, pairs.clients, (preferred > 0).long()),
        labels=counts.index_add(0, pairs.clients, torch.ones_like(pairs.clients)),
        predicted=None,
        margins=preferred,
    )
