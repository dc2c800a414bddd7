"""What a peer counts: bytes of rows, bytes of whole messages, and what it refused."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fedloom.runtimes.libp2p.schema import MessageRefused

log = logging.getLogger(__name__)

_MOST_LOGGED = 100


@dataclass
class Counts:
    """Counts so far.

    Attributes:
        rows_up, rows_down: Bytes of rows sent and received.
        messages_up, messages_down: Bytes of messages, rows included.
        refused: Messages refused, by kind; streams of unknown identities are `unknown_identity`.
    """

    rows_up: int = 0
    rows_down: int = 0
    messages_up: int = 0
    messages_down: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    _logged: set[tuple[str, str]] = field(default_factory=set)
    _taken: Counter[str] = field(default_factory=Counter)

    def since_last(self) -> dict[str, Any]:
        """The metrics of what happened since this was called last."""
        numbers = {
            "bytes_up": self.rows_up,
            "bytes_down": self.rows_down,
            "message_bytes_up": self.messages_up,
            "message_bytes_down": self.messages_down,
        }
        refused = {f"refused {kind}": count for kind, count in list(self.refused.items())}
        total = Counter(numbers | refused)
        new = total - self._taken
        self._taken = total
        return {name: new[name] for name in numbers} | {
            "refused": {name.removeprefix("refused "): new[name] for name in refused if new[name]}
        }

    def refuse(self, peer: int, error: MessageRefused) -> None:
        """Count a neighbour's message; the first of each kind is logged."""
        self._refuse(error.kind, f"peer {peer}", str(error))

    def refuse_stranger(self, identity: str) -> None:
        """Count a stream of somebody who is not in the neighbour file."""
        self._refuse("unknown_identity", identity, "not in the neighbour file, gets no answer")

    def _refuse(self, kind: str, who: str, why: str) -> None:
        self.refused[kind] += 1
        # Identities cost nothing, so that a stranger could fill the disk with them.
        if (kind, who) not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add((kind, who))
            log.warning("refused a message of %s: %s", who, why)
