"""Who is waited for: a neighbour that was waited for in vain a few times is set aside for a while.

Anybody may be late, and one whole timeout is what a neighbour that dies costs. One that says hello in every
round and then nothing would cost one timeout in each. After a few of those it is set aside for two rounds,
then four, up to 64: it is still offered rows and answered, but nobody waits for it. Whenever an edge with it
counts, it is waited for again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_FEW = 3
_LONGEST = 64


@dataclass
class Patience:
    """What came of waiting for each neighbour so far.

    Attributes:
        in_vain: How often it was waited for in vain; a round that counts takes one off.
        until: The first round in which one that is set aside is waited for again.
    """

    in_vain: Counter[int] = field(default_factory=Counter)
    until: dict[int, int] = field(default_factory=dict)

    def waits_for(self, peer: int, round_: int) -> bool:
        """Whether a neighbour is waited for in a round."""
        return round_ >= self.until.get(peer, 0)

    def came(self, peer: int) -> None:
        """An edge with it has counted."""
        self.in_vain[peer] = max(0, self.in_vain[peer] - 1)
        self.until.pop(peer, None)

    def missed(self, peer: int, round_: int) -> int:
        """It was waited for in vain; returns for how many rounds it is set aside."""
        self.in_vain[peer] += 1
        if self.in_vain[peer] < _FEW:
            return 0
        rounds = int(min(2 ** (self.in_vain[peer] - _FEW + 1), _LONGEST))
        self.until[peer] = round_ + 1 + rounds
        return rounds
