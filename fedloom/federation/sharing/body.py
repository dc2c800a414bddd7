"""FedPer (Arivazhagan et al., 2019, arXiv:1912.00818): the body is shared, each client keeps its own head.

    client k:   body_k, head_k ← local training from body, head_k
    server:     body ← Σ_k p_k body_k

The head is what classifies, where the model has such a layer, and LoRA in the last layers: the paper's
personalisation layers. With `body:0` it is the classification head alone (local heads). Where the head
trains first, with the body at rest, and the body after it, it is FedRep (`client_rule` fedrep). With one
client it is local training.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.errors import UserError
from fedloom.federation.sharing import Sharing, last_layers, whole_number


def body(layers: float = 1.0) -> Sharing:
    """Share all but the last layers' LoRA and what is no factor of LoRA.

    Args:
        layers: How many layers are personal.

    Raises:
        UserError: It is no whole number; or, of the names of an adapter, all or none would be personal.
    """
    count = whole_number("body", layers)

    def shared(names: Collection[str]) -> frozenset[str]:
        rest = frozenset(names) - last_layers(names, count)
        if not rest:
            raise UserError(
                f"share: body:{count} leaves clients all that trains, and nothing would be shared; choose "
                "fewer layers, such as --share body:0 for the head alone, or --share all"
            )
        if len(rest) == len(frozenset(names)):
            raise UserError(
                f"share: body:{count} leaves clients a head of their own, and this model trains none; choose "
                "--share body:1, so that the last layer is each client's own, or --share all"
            )
        return rest

    return shared
