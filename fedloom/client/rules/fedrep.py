"""FedRep (Collins et al., 2021, arXiv:2102.07623): in every round the head first, then the body.

With φ the shared body, h_k client k's own head, and τ the head's steps:

    τ times:   h_k ← h_k − η ∇_h F_k(φ, h_k)           the body rests
    then:      φ_k ← φ_k − η ∇_φ F_k(φ_k, h_k)         the head rests
    server:    φ ← Σ_k p_k φ_k

What is personal is the choice of `share`, body in the paper. Where both move in every step it is FedPer. What
rests keeps its value, and its moments where the clients' optimiser has any.
"""

from __future__ import annotations

from fedloom.client.rules import ClientRule
from fedloom.client.rules.none import none
from fedloom.errors import UserError


def fedrep(head_steps: float = 1.0) -> ClientRule:
    """Let personal parameters move in the first steps of a round, and shared ones in the others.

    Args:
        head_steps: τ, of the optimiser steps of a round.

    Raises:
        UserError: It is no whole number from 1.
    """
    if not head_steps.is_integer() or head_steps < 1:
        raise UserError(
            f"client_rule: fedrep:{head_steps:g} is no number of steps; give a whole one from 1, such as "
            "fedrep:1"
        )
    return none()._replace(head_steps=int(head_steps))
