"""A peer's journal: what it has promised, decided and mixed, in the order in which it happened.

One JSON object per line, on the disk before anything follows from it. `event` is one of

    peer       the process began: `client`, `clients`, `neighbors`, `run`, `identities` of this peer and its
               neighbours, by number
    chosen     the layers of a round by its votes, before neighbours are told: `round`, `layers`, as messages
               say them
    said       of this peer's row of a round, before it is sent: a statement, with its `key`
    heard      of a neighbour's row of a round: `peer`, and its statement
    ready      as the higher number of an edge it can mix, and no longer decides alone: `round`, `peer`,
               `weight`
    decision   of an edge's round: `round`, `peer`, `commit`, `weight`; of the lower number its own decision,
               of the higher one what it was told, or that it gave up before it was ready
    mixed      the row of W that a round came to: `round`, `row` {neighbour: weight}, `own`, `late` (edges of
               earlier rounds, added now: `round`, `peer`, `weight`), `in_doubt` (neighbours), `missed`
               (rounds before it that the peer was not there for), `aggregator` (what combined the rows; with
               another than the mean, weights are those that it was given, and nothing is added late)
    closed     after the last round: `round`, and what of earlier rounds was added then, `late`

A round that is mixed again after a crash replaces what stood about it and about later ones.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedloom.runs.files import writing
from fedloom.runs.reading import Damaged
from fedloom.runtimes.libp2p.statements import Statement

JOURNAL_FILE = "exchange/journal.jsonl"

Key = tuple[int, int]
"""``(round, peer)``: a round of an edge, seen from one end."""

Event = dict[str, Any]

_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("round", "peer", "client", "clients"), (int,)),
    **dict.fromkeys(("weight", "own"), (int, float)),
    "commit": (bool,),
    "late": (list,),
    **dict.fromkeys(("before", "signature", "key", "aggregator", "layers"), (str,)),
}


def read_journal(folder: Path) -> list[Event]:
    """The events of a run's folder; a last line that a killed peer left half written is none.

    Raises:
        OSError: There is no journal.
        ValueError: A line is damaged.
    """
    text = (folder / JOURNAL_FILE).read_text(encoding="utf-8")
    try:
        events = [json.loads(line) for line in text.split("\n")[:-1]]
    except RecursionError:
        raise ValueError("a line is nested too deep") from None
    for number, event in enumerate(events, start=1):
        if not isinstance(event, dict) or "event" not in event:
            raise ValueError(f"line {number} is no event")
        row = (str,) if event["event"] in ("said", "heard") else (dict,)  # its digest, or weights
        for name, kinds in (_KINDS | {"row": row}).items():
            if not isinstance(event.get(name), (*kinds, type(None))):
                raise ValueError(f"line {number}: {name} is {str(event[name])[:40]}")
    return events


def valid_mixes(events: list[Event]) -> Iterator[Event]:
    """The `mixed` and `closed` events that count, by round: those that no later one replaces."""
    valid: list[Event] = []
    for event in events:
        if event["event"] == "mixed":
            valid = [old for old in valid if old["round"] < event["round"]]
        if event["event"] in ("mixed", "closed"):
            valid.append(event)
    yield from valid


def statement_of(event: Event) -> Statement:
    """The statement of a `said` or `heard`."""
    return Statement(**{field.name: event[field.name] for field in fields(Statement)})


class Journal:
    """The journal of a peer that is running.

    Attributes:
        weights: Weight of every edge's round that this peer was ready for or committed.
        decisions: Whether an edge's round was committed, as far as known.
        starts: How often this peer has been started.
        chosen: The layers that it has told its neighbours of, by round.
        said: This peer's statements, by round.
        heard: Its neighbours' statements, by an edge's round: the first of each.
    """

    def __init__(self, folder: Path) -> None:
        """Open the journal of a run's folder, with what this peer promised before it was killed, if it was.

        Args:
            folder: The run's folder.

        Raises:
            Damaged: A line is not as it was written.
            CannotWrite: The disk is full, or may not be written.
        """
        self._path = path = folder / JOURNAL_FILE
        self.weights: dict[Key, float] = {}
        self.decisions: dict[Key, bool] = {}
        self.starts = 0
        self.chosen: dict[int, str] = {}
        self.said: dict[int, Statement] = {}
        self.heard: dict[Key, Statement] = {}
        self._two_things: set[Key] = set()
        self._mixes: list[Event] = []
        self._lock = threading.Lock()
        with writing(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Unbuffered, so that what could not be written does not come again when the file is closed.
            self._file = path.open("ab", buffering=0)
            whole = path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(whole)
        try:
            for event in read_journal(folder):
                self._take(event)
            self.unapplied(2**53)  # looks at every mix
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._file.close()
            raise Damaged(
                path,
                error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
                "put a copy back; without it this peer does not know what it has promised its neighbours: "
                "let it begin again under another --exp_name",
            ) from None

    def write(self, event: str, **content: Any) -> None:
        """Append an event; it is on the disk when this returns.

        Raises:
            CannotWrite: The disk is full; nothing of the event is there.
        """
        entry: Event = {"event": event, **content}
        with self._lock, writing(self._path):
            whole = self._file.seek(0, os.SEEK_END)
            try:
                line = memoryview(json.dumps(entry).encode() + b"\n")
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(whole)
                raise
            self._take(entry)

    def decide(self, key: Key, commit: bool, weight: float = 0.0) -> bool:
        """Decide an edge's round, unless that was done before; returns the decision that stands."""
        if key not in self.decisions:
            self.write("decision", round=key[0], peer=key[1], commit=commit, weight=weight)
        return self.decisions[key]

    def ready(self, key: Key, weight: float) -> None:
        """Promise to mix an edge's round if the other end decides so."""
        if key not in self.weights:
            self.write("ready", round=key[0], peer=key[1], weight=weight)

    def choose(self, round_: int, layers: str) -> str:
        """Choose a round's layers, unless that was done before; returns the choice that stands."""
        if round_ not in self.chosen:
            self.write("chosen", round=round_, layers=layers)
        return self.chosen[round_]

    def say(self, statement: Statement) -> None:
        """Keep what this peer is about to say."""
        self.write("said", **vars(statement))

    def hear(self, key: Key, statement: Statement) -> None:
        """Keep what a neighbour says; where it says two things of a round, these two are proof enough."""
        known = self.heard.get(key)
        if known is None or not (known.says_what(statement) or key in self._two_things):
            self.write("heard", peer=key[1], **vars(statement))

    @property
    def doubts(self) -> list[Key]:
        """Rounds of edges that this peer was ready for and whose decision it has not heard."""
        return [key for key in list(self.weights) if key not in self.decisions]

    def unapplied(self, before: int) -> list[Key]:
        """Committed rounds of edges, over by now, that are in no mix of a round before this one."""
        applied = {
            key
            for mix in self._mixes
            if mix["round"] < before
            for key in [
                *((mix["round"], int(peer)) for peer in mix.get("row", {})),
                *((late["round"], late["peer"]) for late in mix["late"]),
            ]
        }
        # Another thread may write a decision meanwhile.
        committed = [key for key, commit in list(self.decisions.items()) if commit]
        return sorted(key for key in committed if key[0] < before and key not in applied)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take(self, event: Event) -> None:
        if event["event"] == "ready":
            self.weights[event["round"], event["peer"]] = event["weight"]
        elif event["event"] == "decision":
            key = (event["round"], event["peer"])
            self.decisions[key] = event["commit"]
            if event["commit"]:
                self.weights[key] = event["weight"]
        elif event["event"] == "peer":
            self.starts += 1
        elif event["event"] == "chosen":
            self.chosen[event["round"]] = event["layers"]
        elif event["event"] == "said":
            self.said[event["round"]] = statement_of(event)
        elif event["event"] == "heard":
            key, heard = (event["round"], event["peer"]), statement_of(event)
            if not self.heard.setdefault(key, heard).says_what(heard):
                self._two_things.add(key)
        elif event["event"] in ("mixed", "closed"):
            self._mixes = list(valid_mixes([*self._mixes, event]))
