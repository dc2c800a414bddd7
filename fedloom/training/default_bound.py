"""What one real client or peer can do is bounded, unless that is turned off.

    aggregator auto, and no method that names one:   norm_bound, Δ ← Σ_k p_k Δ_k min(1, τ / ‖Δ_k‖)

with τ twice the median of the round's norms (`federation.aggregators.norm_bound`). It stays the mean where
the mean is what something rests on: exact LoRA aggregation, gradient tracking, layer votes, compressed gossip
(whose estimates keep the mean over peers), user-level privacy (which clips each client by itself),
secure aggregation (where the server sees no client's change; each number of an honest one has a bound).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from fedloom.errors import UserError
from fedloom.federation.algorithm import Algorithm
from fedloom.options.flower import FlowerConfig
from fedloom.options.methods import AUTO
from fedloom.options.peer import PeerConfig
from fedloom.training.algorithms import algorithm_on_graph, algorithm_with_server

C = TypeVar("C", FlowerConfig, PeerConfig)

BOUND = "norm_bound"


def bounded(config: C) -> tuple[C, str]:
    """Options with the aggregator that `auto` turns out to be, and a line that says which.

    Args:
        config: Options of a run with real clients or peers, judged.

    Returns:
        The options, and the line; "" where the aggregator was named.

    Raises:
        UserError: The parts of the algorithm cannot be combined, whatever the aggregator.
    """
    if config.aggregator != AUTO:
        return config, ""
    plain, bound = replace(config, aggregator="mean"), replace(config, aggregator=BOUND)
    why = ""
    if isinstance(config, FlowerConfig) and config.secure_aggregation is not None:
        why = "secure aggregation shows the server nobody's change"
    elif vars(config).get("privacy") == "user":
        why = "privacy user clips every client to a bound of its own"
    else:
        try:
            algorithm = _algorithm(bound)
        except UserError as error:
            why = str(error).partition("; ")[0]
        else:
            if not (isinstance(config, PeerConfig) and algorithm.codec.lossy):
                return bound, (
                    f"aggregator: {BOUND}, so that no one's change counts for more than twice the median one "
                    "of a round; --aggregator mean turns it off"
                )
            why = "compressed gossip rests on the mean over peers, which it keeps"
    _algorithm(plain)
    return plain, f"aggregator: mean, with no bound on what one may do, as {why}"


def _algorithm(config: FlowerConfig | PeerConfig) -> Algorithm:
    return (
        algorithm_on_graph(config)
        if isinstance(config, PeerConfig)
        else algorithm_with_server(config.of_the_run)
    )
