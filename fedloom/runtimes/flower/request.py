"""What a client is asked, and what it answers, as plain data: one process may hand it to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fedloom.runtimes.flower.content import Content


@dataclass(frozen=True)
class Request:
    """What a client is asked.

    Attributes:
        kind: ``query``: who are you; ``train``: take part in a round.
        options: The run config.
        node: The node config.
        content_: What the server sent.
        kept: What the client has kept.
    """

    kind: str
    options: dict[str, Any]
    node: dict[str, Any]
    content_: Content
    kept: Content

    def pieces(self) -> list[bytes]:
        """As bytes."""
        plain = {
            "kind": self.kind,
            "options": self.options,
            "node": self.node,
            "facts": self.content_.facts,
            "kept": self.kept.facts,
        }
        return [json.dumps(plain).encode(), self.content_.tensors, self.kept.tensors]

    @classmethod
    def of(cls, pieces: list[bytes]) -> Request:
        """From what `pieces` returned."""
        plain, tensors, kept = json.loads(pieces[0]), pieces[1], pieces[2]
        return cls(
            plain["kind"],
            plain["options"],
            plain["node"],
            Content(plain["facts"], tensors),
            Content(plain["kept"], kept),
        )


@dataclass(frozen=True)
class Answer:
    """What a client answers.

    Attributes:
        content_: For the server.
        kept: What the client keeps until the next request; None: as before.
    """

    content_: Content
    kept: Content | None = None

    def pieces(self) -> list[bytes]:
        """As bytes."""
        plain = {"facts": self.content_.facts, "kept": None if self.kept is None else self.kept.facts}
        return [
            json.dumps(plain).encode(),
            self.content_.tensors,
            b"" if self.kept is None else self.kept.tensors,
        ]

    @classmethod
    def of(cls, pieces: list[bytes]) -> Answer:
        """From what `pieces` returned."""
        plain = json.loads(pieces[0])
        kept = None if plain["kept"] is None else Content(plain["kept"], pieces[2])
        return cls(Content(plain["facts"], pieces[1]), kept)
