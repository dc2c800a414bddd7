"""How many changes become one; every file beside this one is one aggregator.

An aggregator is a function from what arrived to the receiver's own change. It serves a server, whose senders
are the clients of a round, and a peer, whose senders are its neighbours and itself, alike:

    changes = Changes(before, deltas, weights, pairs)      # deltas [senders, *shape], weights [senders]
    change = mean()(changes)                               # Σ_k weights_k · deltas_k

One that remembers something from round to round, such as who sent what before, is a `StatefulAggregator`.
The mean of a server's round is added up as updates come, without keeping them; see `federation.aggregate`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fedloom.errors import UserError
from fedloom.model.bank import AdapterBank, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What arrived at a receiver in a round.

    Attributes:
        before: The receiver's adapter, of the parameters that are shared.
        deltas: Each sender's difference from it, ``[senders, *shape]``.
        weights: Of the senders; they sum to 1.
        pairs: The names of LoRA's A and B, for each module that has both in ``before``.
        scales: By what each sender's products count beside its weight (`federation.ranks`); None: alike.
        seed: Of what is drawn at random in this round.
        senders: Which clients, or peers, they are, from 0, ascending; a peer is among its own.
        statistics: What each says of its round, ``[senders]``: ``examples``, ``loss`` (mean, while training),
            ``steps`` of its optimiser and ``tokens``; `NO_STATISTICS` among peers, who send none. Nothing but
            a sender's honesty stands behind them.
        round: Which round, from 0.
    """

    before: Row
    deltas: AdapterBank
    weights: Float[Tensor, " senders"]
    pairs: Sequence[tuple[str, str]] = ()
    scales: Float[Tensor, " senders"] | None = None
    seed: int = 0
    senders: Sequence[int] = ()
    statistics: Mapping[str, Float[Tensor, " senders"]] = field(default_factory=dict)
    round: int = 0


class NeedsServer(UserError):
    """An aggregator is used among peers, and asks for what only a server has."""


class _NoStatistics(dict[str, Tensor]):
    def __missing__(self, name: str) -> Tensor:
        raise NeedsServer(
            f"aggregator: it weighs senders by statistics[{name!r}], and peers on a graph send their rows "
            "alone; use it with a server (fedloom fed), or choose another aggregator"
        )


NO_STATISTICS: Mapping[str, Tensor] = _NoStatistics()
"""What peers say of their round."""


def check_server(changes: Changes, name: str, why: str) -> None:
    """Refuse an aggregator that has no meaning among peers; it calls this first, whenever it combines.

    Before a run on a graph begins, an aggregator combines a row of no consequence, so that this is told then.

    Args:
        changes: What arrived.
        name: The aggregator's.
        why: What it needs and peers have not, in words.

    Raises:
        NeedsServer: The receiver is a peer.
    """
    if changes.statistics is NO_STATISTICS:
        raise NeedsServer(
            f"aggregator: {name} has no meaning without a server: {why}; use it with one (fedloom fed), or "
            "choose another aggregator, such as mean"
        )


Aggregator = Callable[[Changes], Row]
"""``changes -> change``: what the receiver's adapter changes by."""


class StatefulAggregator(NamedTuple):
    """An aggregator that remembers from round to round.

    Its state is a row of any names, whose shapes stay what they are; it is in every checkpoint. On a graph
    each peer has one of its own. One that never looks at its state is a plain aggregator:

        StatefulAggregator(lambda before, senders: {}, lambda changes, state: (mean()(changes), state))

    Attributes:
        init: ``(adapter, senders) -> state`` before the first round: of the parameters that are shared, and
            of how many clients, or peers, there are; `Changes.senders` are places among these.
        combine: ``(changes, state) -> (change, state)``.
    """

    init: Callable[[Row, int], Row]
    combine: Callable[[Changes, Row], tuple[Row, Row]]


def combine(aggregator: Aggregator | StatefulAggregator, changes: Changes, state: Row) -> tuple[Row, Row]:
    """The change, and what the aggregator remembers; of one that does not, what there was."""
    if isinstance(aggregator, StatefulAggregator):
        return aggregator.combine(changes, state)
    return aggregator(changes), state


@dataclass(frozen=True)
class Folding:
    """An aggregator that changes the base too; see `model.adapters.folding`.

    Attributes:
        combine: ``changes -> change``, which has factors of the base's change beside the adapter's.
        anew: Whether factors begin anew, so that nothing that knew the old ones is of any use.
        rank: The most rank that the base's change may have; None: any.
        among_peers: What stands in the place of ``combine`` on a graph, where each peer has a change of its
            own in its adapter; None: there it has no meaning.
    """

    combine: Aggregator
    anew: bool = False
    rank: int | None = None
    among_peers: Aggregator | None = None

    def __call__(self, changes: Changes) -> Row:
        """The change of the adapter, and of the base."""
        return self.combine(changes)


@dataclass(frozen=True)
class Refactoring:
    """An aggregator of a server whose adapter gets other factors of the same products after its step.

    Where that is after no round, factors are one for all for good, and it has a meaning on a graph, too.

    Attributes:
        aggregator: ``changes -> change``.
        refactor: ``(adapter, round) -> adapter``; what knew the old factors one number at a time is of no use
            then.
        rounds: After so many rounds, the first of a run; None: after all.
        initial: ``(adapter, seed) -> adapter`` with matrices between the factors, which everybody starts
            from; see `model.adapters.square`. None: there are none.
    """

    aggregator: Aggregator
    refactor: Callable[[Row, int], Row]
    rounds: int | None = None
    initial: Callable[[Row, int], Row] | None = None

    def after(self, round_: int) -> bool:
        """Whether factors are others after a round, from 0."""
        return round_ >= 0 and (self.rounds is None or round_ < self.rounds)


def count_of(share: float, senders: int) -> int:
    """How many senders a share of them is, rounded down."""
    return int(share * senders + 1e-9)  # 0.3 · 10 is 3, also in floating point


@functools.cache  # once for each number of senders, not in every round
def warn_of_nobody(name: str, share: float, senders: int) -> None:
    """Say that an aggregator that is to leave out a share of the senders leaves out nobody."""
    log.warning(
        "%s:%g leaves out nobody of %d senders and is their mean; it takes 1 / %g senders at least",
        name,
        share,
        senders,
        share,
    )
