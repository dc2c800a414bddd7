"""A and B train in turns.

    RoLoRA       Chen et al., 2024, arXiv:2409.02346      with a server, in turns of one round
    ADF-LoRA     Wang et al., 2025, arXiv:2511.18291      on a graph; both factors are mixed in every round
    TAD-LoRA     Wang et al., 2026, arXiv:2602.00451      on a graph, in turns of T rounds

    rounds 0 to T − 1:    B_k ← local training with A as it is;    B ← Σ_k p_k B_k
    rounds T to 2T − 1:   A_k ← local training with B as it is;    A ← Σ_k p_k A_k;    and so on

While one factor rests and is the same for all, averaging the other averages the products exactly. B is first:
it begins at zero, where A has no gradient. With turns that never end it is FFA-LoRA, on a graph DFL-LoRA.
"""

from __future__ import annotations

from collections.abc import Collection

from fedloom.errors import UserError
from fedloom.federation.train_factors import TrainFactors


def alternate(rounds: float = 1.0) -> TrainFactors:
    """B, then A, then B again.

    Args:
        rounds: Of a turn, T.

    Raises:
        UserError: It is no whole number from 1.
    """
    if not rounds.is_integer() or rounds < 1:
        raise UserError(
            f"train_factors: alternate:{rounds:g} is no turn; give a whole number of rounds from 1, such as "
            "alternate:5"
        )

    def in_turns(names: Collection[str], round_: int) -> frozenset[str]:
        rests = ".lora_A." if (round_ // int(rounds)) % 2 == 0 else ".lora_B."
        return frozenset(name for name in names if rests not in name)

    return in_turns
