"""How many rounds the others can be ahead: what a neighbour says of its own round binds nobody.

Where more than half of the neighbours that are there say to have come so far, and they are two or more, they
are believed. One alone is believed as far as time allows it. Others wait for a peer that is in step; so they
can be ahead of it only if it was not there, or has let them wait for longer than the timeout, and then by as
many rounds as somebody ten times as fast could have done since.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_FASTER = 10


@dataclass
class Lag:
    """What a peer knows of the time that it has let others wait.

    Attributes:
        timeout: Seconds that others wait for it.
        lost: Seconds that they may have gone on without it, since it was last in step with somebody.
        training: Seconds that its last training took.
    """

    timeout: float
    lost: float = 0.0
    training: float = 0.0
    _left: float = field(default_factory=time.monotonic)

    def enters(self) -> None:
        """It has trained, and begins to exchange rows: from here on it is the one that waits."""
        self.lost += max(0.0, time.monotonic() - self._left - self.timeout)

    def leaves(self, in_step: bool = False) -> None:
        """The exchange is over; whether somebody was in the same round."""
        self.lost = 0.0 if in_step else self.lost
        self._left = time.monotonic()

    def believed(self, following: int, claimed: int, voices: int) -> int:
        """The round to go on with.

        Args:
            following: The one after this peer's last.
            claimed: That of others, as they say.
            voices: How many of them say so.
        """
        if voices < 2:
            claimed = min(claimed, following + int(self.lost * _FASTER / max(self.training, 1e-3)))
        return max(following, claimed)
