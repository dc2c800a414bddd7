"""What a pass says of each client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedloom.model.pack import Pack


@dataclass(frozen=True)
class Losses:
    """What a pass says of each client.

    Attributes:
        loss: The client's own weighted sum over its labels; differentiable.
        correct: Labels predicted right.
        labels: Labels in the pass.
        predicted: The likeliest class per label, client by client; None in language modelling.
    """

    loss: Float[Tensor, " clients"]
    correct: Int[Tensor, " clients"]
    labels: Int[Tensor, " clients"]
    predicted: Int[Tensor, " every"] | None


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
