"""From options to the attackers of a simulation."""

from __future__ import annotations

from functools import partial
from typing import Any

from fedloom.data.randomness import numpy_rng
from fedloom.federation.attacks import Attackers
from fedloom.federation.plugged import guarded
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.methods import ATTACK
from fedloom.options.parts import is_plugged, make


def simulated_attackers(config: FedConfig | DflConfig, clients: int) -> Attackers | None:
    """Who attacks, and how: a function of the seed, or as listed; None where nobody does.

    Args:
        config: Options of a run, checked.
        clients: How many clients or peers there are.

    Raises:
        UserError: The attack cannot be made of its text.
    """
    if config.attack == ATTACK.default:
        return None
    make_it = partial(make, ATTACK, config.attack, vars(config))
    attack = guarded("attack", config.attack, make_it) if is_plugged("attack", config.attack) else make_it()
    numbers = [number - 1 for number in config.attacker_numbers]
    if not numbers:
        assert not isinstance(config.attackers, str)
        count = config.attackers or 1
        numbers = numpy_rng(config.seed, "attackers").choice(clients, count, replace=False).tolist()
    return Attackers(frozenset(numbers), attack, config.seed)


def attackers_of(attackers: Attackers | None) -> dict[str, Any]:
    """What summary.json says of a run's attackers: their numbers, from 1."""
    return {} if attackers is None else {"attackers": [client + 1 for client in sorted(attackers.clients)]}
