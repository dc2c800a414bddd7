"""LG-FedAvg (Liang et al., 2020, arXiv:2001.01523): the head is shared, the layers below are personal.

    client k:   body_k, head_k ← local training from body_k, head
    server:     head ← Σ_k p_k head_k

Each client learns a representation of its own data, and one head reads all of them: FedPer (`body.py`) the
other way round. The head is what classifies, where the model has such a layer, and LoRA in the last layers.
With one client it is local training.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.errors import UserError
from fedloom.federation.sharing import Sharing, last_layers, whole_number


def head(layers: float = 1.0) -> Sharing:
    """Share the last layers' LoRA, and what is no factor of LoRA.

    Args:
        layers: How many layers are shared.

    Raises:
        UserError: It is no whole number; or, of the names of an adapter, all or none would be shared.
    """
    count = whole_number("head", layers)

    def shared(names: Collection[str]) -> frozenset[str]:
        last = last_layers(names, count)
        if not last or len(last) == len(frozenset(names)):
            what = "all that trains" if last else "nothing, as this model trains no head"
            raise UserError(
                f"share: head:{count} shares {what}; choose a number of layers from 1 and below the model's, "
                "or --share all"
            )
        return last

    return shared
