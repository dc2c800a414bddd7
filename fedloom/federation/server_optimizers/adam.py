"""FedAdam (Reddi et al., 2021, arXiv:2003.00295), with AdamW's decoupled weight decay as the original FedGPL
has it: along −Δ / client_lr, with bias correction and ε = 1e-8, where the paper takes Δ, no correction and τ.
"""

from __future__ import annotations

from fedloom.client.optimisers import Optimiser
from fedloom.client.optimisers import adam as adaptive

WEIGHT_DECAY = 0.01
"""torch's default for AdamW, which FedGPL uses."""


def adam(*, lr: float) -> Optimiser:
    """AdamW along the pseudo-gradient."""
    return adaptive(lr, weight_decay=WEIGHT_DECAY)
