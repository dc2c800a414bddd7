"""What a client is asked, and what it answers, as plain data: one process may hand it to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedloom.runtimes.flower.parcel import Parcel


@dataclass(frozen=True)
class Request:
    """What a client is asked.

    Attributes:
        kind: ``query``: who are you; ``train``: take part in a round.
        options: The run config.
        node: The node config.
        parcel: What the server sent.
        kept: What the client has kept.
    """

    kind: str
    options: dict[str, Any]
    node: dict[str, Any]
    parcel: Parcel
    kept: Parcel

    def pieces(self) -> list[bytes]:
        """As bytes."""
        plain = {
            "kind": self.kind,
            "options": self.options,
            "node": self.node,
            "facts": self.parcel.facts,
            "kept": self.kept.facts,
        }
        return [json.dumps(plain).encode(), self.parcel.tensors, self.kept.tensors]

    @classmethod
    def of(cls, pieces: list[bytes]) -> Request:
        """From what `pieces` returned."""
        plain, tensors, kept = json.loads(pieces[0]), pieces[1], pieces[2]
        return cls(
            plain["kind"],
            plain["options"],
            plain["node"],
            Parcel(plain["facts"], tensors),
            Parcel(plain["kept"], kept),
        )


@dataclass(frozen=True)
class Answer:
    """What a client answers.

    Attributes:
        parcel: For the server.
        kept: What the client keeps until the next request; None: as before.
    """

    parcel: Parcel
    kept: Parcel | None = None

    def pieces(self) -> list[bytes]:
        """As bytes."""
        plain = {"facts": self.parcel.facts, "kept": None if self.kept is None else self.kept.facts}
        return [
            json.dumps(plain).encode(),
            self.parcel.tensors,
            b"" if self.kept is None else self.kept.tensors,
        ]

    @classmethod
    def of(cls, pieces: list[bytes]) -> Answer:
        """From what `pieces` returned."""
        plain = json.loads(pieces[0])
        kept = None if plain["kept"] is None else Parcel(plain["kept"], pieces[2])
        return cls(Parcel(plain["facts"], pieces[1]), kept)
