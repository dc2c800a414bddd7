"""The tensors that a peer must not lose: its trained row, rows that it heard, and differences in doubt.

    exchange/trained-000003.safetensors         its row and optimiser after training in round 3
    exchange/heard-000003-0002.safetensors      what peer 2 sent in round 3
    exchange/doubt-000003-0002.safetensors      W_ij (w_j − w_i) of that round, not known whether it counts
    exchange/estimate-000003-0002.safetensors   what both ends of the edge with peer 2 know since that round
    exchange/pending-000003-0002.safetensors    the same, not known whether the round counts

A file is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open

from fedloom.model.bank import Row
from fedloom.runs.files import replace_tensors, sync, writing
from fedloom.runs.reading import Damaged, read_tensors
from fedloom.runtimes.libp2p.journal import Key

T = TypeVar("T")

_NAME = re.compile(r"(trained|heard|doubt|estimate|pending)-(\d+)(?:-(\d+))?\.safetensors")


class PeerStore:
    """The files of a run's folder.

    Attributes:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "exchange"
        with writing(self.folder):
            # Rows of neighbours are learnt from their data: nobody else is to see them.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def trained_round(self) -> int | None:
        """The last round whose training is done, if any."""
        return max((key[0] for kind, key in self._files() if kind == "trained"), default=None)

    def save_trained(self, round_: int, tensors: Row, state: dict[str, Any], seconds: float) -> None:
        """Keep what training came to, what goes with it as JSON keeps it, and how long it took."""
        metadata = {"state": json.dumps(state), "seconds": repr(seconds)}
        replace_tensors(self._path("trained", (round_, 0)), tensors, metadata)

    def load_trained(self, round_: int) -> tuple[Row, dict[str, Any]]:
        """What `save_trained` was given.

        Raises:
            Damaged: It is not as it was saved.
        """
        path = self._path("trained", (round_, 0))
        return read_tensors(path), _read_metadata(path, "state", json.loads)

    def since_trained(self, round_: int) -> tuple[float, float]:
        """How many seconds ago a round's training was kept, and how many it took.

        Raises:
            Damaged: The file is not as it was saved.
        """
        path = self._path("trained", (round_, 0))
        seconds = _read_metadata(path, "seconds", float)
        return max(0.0, time.time() - path.stat().st_mtime), seconds

    def save_heard(self, key: Key, row: Row) -> None:
        """Keep the row that a neighbour sent."""
        replace_tensors(self._path("heard", key), row)

    def heard(self, key: Key) -> Row | None:
        """The row that a neighbour sent, if it is there."""
        return self._read("heard", key)

    def save_doubt(self, key: Key, difference: Row, weight: float) -> None:
        """Keep the difference that an edge in doubt would make, and its weight."""
        replace_tensors(self._path("doubt", key), difference, {"weight": repr(weight)})

    def doubt(self, key: Key) -> tuple[Row, float] | None:
        """The difference that an edge in doubt would make, and its weight, if it is there.

        Raises:
            Damaged: It is not as it was saved.
        """
        path = self._path("doubt", key)
        if not path.exists():
            return None
        return read_tensors(path), _read_metadata(path, "weight", float)

    def save_estimates(self, key: Key, own: Row, other: Row, *, pending: bool) -> None:
        """Keep what both ends of an edge know since a round of it, or will if it counts."""
        rows = {f"own.{name}": t for name, t in own.items()} | {f"other.{n}": t for n, t in other.items()}
        replace_tensors(self._path("pending" if pending else "estimate", key), rows)

    def estimates(self, peer: int) -> tuple[int, Row, Row] | None:
        """What both ends of an edge know: since which round, of this peer's row, and of the neighbour's.

        Raises:
            Damaged: It is not as it was saved.
        """
        round_ = self._last_estimate(peer)
        if round_ == 0:
            return None
        rows = read_tensors(self._path("estimate", (round_, peer)))
        own, other = (
            {name.removeprefix(whose): t for name, t in rows.items() if name.startswith(whose)}
            for whose in ("own.", "other.")
        )
        return round_, own, other

    def promote(self, key: Key) -> None:
        """Let what was pending be what both ends know, once a round counts; done again, it does nothing."""
        pending = self._path("pending", key)
        if pending.exists():
            with writing(pending):
                os.replace(pending, self._path("estimate", key))
                sync(self.folder)

    def _last_estimate(self, peer: int) -> int:
        return max(
            (key[0] for kind, key in self._files() if kind == "estimate" and key[1] == peer), default=0
        )

    def clear(self, round_: int, open_doubts: Collection[Key]) -> None:
        """Remove what no crash can ask for again, once the training of ``round_`` is kept.

        Args:
            round_: The newest trained round.
            open_doubts: Edges' rounds whose differences may still count.
        """
        for kind, key in self._files():
            kept = (kind in ("doubt", "pending") and key in open_doubts) or (
                kind == "estimate" and key[0] == self._last_estimate(key[1])
            )
            if key[0] < round_ and not kept:
                self._path(kind, key).unlink()

    def _files(self) -> list[tuple[str, Key]]:
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return [(match[1], (int(match[2]), int(match[3] or 0))) for match in found if match]

    def _path(self, kind: str, key: Key) -> Path:
        peer = f"-{key[1]:04d}" if key[1] else ""
        return self.folder / f"{kind}-{key[0]:06d}{peer}.safetensors"

    def _read(self, kind: str, key: Key) -> Row | None:
        path = self._path(kind, key)
        return read_tensors(path) if path.exists() else None


def _read_metadata(path: Path, name: str, parse: Callable[[str], T]) -> T:
    try:
        with safe_open(path, framework="pt") as file:
            return parse(file.metadata()[name])
    # Whatever the metadata are not: there, a mapping, JSON, a number.
    except Exception as error:
        raise Damaged(path, error) from None
