"""FedSA-LoRA (Guo et al., 2025, arXiv:2410.01463): only LoRA's A is shared, every client keeps a B of its
own.

    client k:   A_k, B_k ← local training from A, B_k
    server:     A ← Σ_k p_k A_k

The paper finds that A learns what is general and B what is the client's. What is no LoRA factor, such as a
classification head, is the client's too. A model that is the same for all does not come of it: with B as it
began, at zero, the server's adapter changes nothing, and clients are judged by their own. With one client it
is local training.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.federation.sharing import Sharing


def a() -> Sharing:
    """The names of LoRA's A."""
    return factors_a


def factors_a(names: Collection[str]) -> frozenset[str]:
    """Those of some names that are LoRA's A."""
    return frozenset(name for name in names if ".lora_A." in name)
