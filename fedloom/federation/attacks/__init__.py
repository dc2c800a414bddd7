"""What attackers do in a simulation; every file beside this one is one attack.

An attacker is a client or a peer that trains as all do, on data that it may have altered, and then sends what
it likes. An attack is up to three functions; those that are not there leave things as they are:

    examples = attack.poison(examples, classes, rng)    # what it trains on
    delta = attack.craft(delta, sight)                  # what it sends, instead of its change
    examples = attack.probe(examples, classes)          # validation examples that show whether it succeeds

`craft` stands before the codec: what it makes is compressed and counted as any change is, and the residual of
the codec is the attacker's own. What a client rule sends beside (`client.rules`) is as training has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fedloom.data.example import Example
from fedloom.data.randomness import derive_seed, numpy_rng
from fedloom.model.bank import Row, usable


@dataclass(frozen=True)
class Sight:
    """What an attacker knows of a round when it sends.

    Attributes:
        senders: How many take part, honest and not.
        attackers: How many of them attack.
        mean, deviation: Of the honest changes, for each number alone, in float64; the deviation is that of
            these changes (the divisor is their number). Empty where the attack does not look at them, or
            nothing honest is there.
        seed: What is drawn at random depends on.
    """

    senders: int
    attackers: int
    mean: Row = field(default_factory=dict)
    deviation: Row = field(default_factory=dict)
    seed: int = 0


class Attack(NamedTuple):
    """See the module.

    Attributes:
        craft: ``(delta, sight) -> what is sent instead``; None: the delta.
        poison: ``(examples, classes, rng) -> examples``. The classes are those that the model is to tell
            apart, () where answers are no classes; raises ``UserError`` where the attack has no meaning.
        probe: ``(validation examples, classes) -> examples whose answer is the attacker's``, or None.
        looks: Whether `craft` needs the honest changes.
    """

    craft: Callable[[Row, Sight], Row] | None = None
    poison: Callable[[Sequence[Example], Sequence[str], np.random.Generator], list[Example]] | None = None
    probe: Callable[[Sequence[Example], Sequence[str]], list[Example]] | None = None
    looks: bool = False


@dataclass(frozen=True)
class Attackers:
    """Who attacks, and how.

    Attributes:
        clients: Their numbers, from 0.
        attack: What they do.
        seed: Of the run.
    """

    clients: frozenset[int]
    attack: Attack
    seed: int

    def poisoned(self, client: int, examples: list[Example], classes: Sequence[str]) -> list[Example]:
        """What a client trains on, attacker or not."""
        if client not in self.clients or self.attack.poison is None:
            return examples
        return self.attack.poison(examples, classes, numpy_rng(self.seed, "poison", client))

    def crafted(self, client: int, round_: int, delta: Row, sight: Sight) -> Row:
        """What an attacker sends instead of its change."""
        if self.attack.craft is None or (self.attack.looks and not sight.mean):
            return delta
        seed = derive_seed(self.seed, "attack", round_, client)
        made = self.attack.craft(delta, replace(sight, seed=seed))
        return {name: made[name].to(t) for name, t in delta.items()}


def drawn(attack: Attack, clients: int, count: int, seed: int) -> Attackers:
    """Attackers who are drawn by the seed.

    Args:
        attack: What they do.
        clients: How many clients there are.
        count: How many of them attack.
        seed: Of the run.
    """
    numbers = numpy_rng(seed, "attackers").choice(clients, count, replace=False)
    return Attackers(frozenset(numbers.tolist()), attack, seed)


def summary_of(attackers: Attackers | None) -> dict[str, Any]:
    """What summary.json says of a run's attackers: their numbers, from 1."""
    return {} if attackers is None else {"attackers": [client + 1 for client in sorted(attackers.clients)]}


class Watch:
    """Mean and deviation of honest changes, added up one by one: no row is kept."""

    def __init__(self, like: Row) -> None:
        """Nothing has been seen.

        Args:
            like: A change of the names and shapes that there are.
        """
        self.count = torch.zeros(1, dtype=torch.float64, device=next(iter(like.values())).device)
        self.sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in like.items()}
        self.squares = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in like.items()}

    def add(self, delta: Row) -> None:
        """Look at an honest change; one that the server would leave out is no example to follow."""
        if usable(delta):
            self.count += 1
            for name, t in delta.items():
                self.sums[name] += t
                self.squares[name] += t.double().square()

    def seen(self, total: Callable[[Row], Row]) -> tuple[Row, Row]:
        """Mean and deviation of all that was seen; two empty rows where nothing was.

        Args:
            total: Adds what other processes have seen.
        """
        rows = {"count": self.count}
        rows |= {f"sum.{name}": t for name, t in self.sums.items()}
        rows |= {f"square.{name}": t for name, t in self.squares.items()}
        rows = total(rows)
        count = float(rows["count"])
        if not count:
            return {}, {}
        mean = {name: rows[f"sum.{name}"] / count for name in self.sums}
        variance = {name: rows[f"square.{name}"] / count - mean[name].square() for name in mean}
        return mean, {name: t.clamp(min=0).sqrt() for name, t in variance.items()}


def class_names(names: Sequence[str], examples: Sequence[Example]) -> tuple[str, ...]:
    """A data set's classes, where a model that writes its answers is to write their names; else none."""
    known = set(names)
    return tuple(names) if names and all(one.answer in known and not one.turns for one in examples) else ()
