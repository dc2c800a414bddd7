"""The round whose rows are being exchanged, as a peer has opened it for its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedloom.model.bank import Row
from fedloom.runtimes.libp2p.statements import Statement


@dataclass(frozen=True)
class Offered:
    """What a neighbour is sent in a round.

    Attributes:
        row: This peer's row; or, compressed, a difference.
        basis: The round of the edge that left what it is a difference from; 0 where there was none.
        layers: The layers that it has, as a message says them; "": all.
    """

    row: Row
    basis: int = 0
    layers: str = ""


@dataclass(frozen=True)
class Open:
    """The round whose rows are exchanged.

    Attributes:
        round: From 1.
        offered: By neighbour; over the edges of the others nothing is sent in this round.
        said: What this peer says of its row.
        began: Since when.
        fits: Whether what a neighbour sends can be combined.
    """

    round: int
    offered: Mapping[int, Offered]
    said: Statement
    began: float
    fits: Callable[[int, Row], bool] = lambda peer, row: True
