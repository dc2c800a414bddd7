"""Whether a run of plain SGD at the server can get anywhere, judged by its first round.

Adam makes steps of its learning rate, whatever the gradient is. SGD's are as long as the gradient, whose norm
is 0.5 to 5 for LoRA (its B begins at 0): at a learning rate that suits Adam, such as 1e-4, a short run moves
nothing, without an error, and its loss looks flat.
"""

from __future__ import annotations

import logging
import math

from fedloom.model.bank import Row, norm_of
from fedloom.training.setup_fed import Parts

log = logging.getLogger(__name__)

LEAST = 0.01
"""Of the loss: a run that lowers it by less cannot be told from one that does nothing."""


def warn_of_standstill(parts: Parts, before: Row, after: Row, rounds: int, loss: float) -> None:
    r"""Warn where all rounds together would not lower the loss visibly.

    To first order: the server's move is Δ = −η Σ_s g_s over the S steps of a client, so that the gradient is
    about −Δ / (η S), and a round lowers the loss by ⟨gradient, −Δ⟩ = ‖Δ‖² / (η S). The noise of batches makes
    Δ longer and this larger than it is, so what is called too little is less than that. Nothing is said where
    the first loss is no number, or a round ends with new factors, whose change is not that of the model.

    Args:
        parts: Of a run with `server_sgd`.
        before: The server's adapter before the first round.
        after: The same after it.
        rounds: How many there are.
        loss: Of the first, in training.
    """
    assert parts.server_sgd is not None
    if not math.isfinite(loss) or parts.algorithm.ends_with_new_factors:
        return
    option, rate = parts.server_sgd
    schedule = parts.schedule
    steps = -(-schedule.batches * schedule.epochs // schedule.accumulate)
    # Summed, a step's gradient is as many times as long as it has batches.
    length = rate * (schedule.accumulate if parts.rules.accumulate == "sum" else 1)
    moved = norm_of({name: after[name] - w for name, w in before.items()})
    gain = rounds * moved**2 / (length * steps)
    if gain >= LEAST * loss:
        return
    log.warning(
        "%s: %g moves next to nothing: by the first round's gradients %s rounds lower the loss of %.2f by "
        "about %.1g. Plain SGD at the server, as in FedAvg and FedProx, takes LoRA at %s of 0.01 to 1 (try "
        "0.05); steps of FedAdam do not shrink with the gradient",
        option,
        rate,
        f"{rounds:,}",
        loss,
        gain,
        "client_lr and lr" if option == "lr" else option,
    )
