"""A peer's journal as the audit reads it: what it gave, kept, promised and said, by round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.runtimes.libp2p.journal import JOURNAL_FILE, read_journal, statement_of, valid_mixes
from fedloom.runtimes.libp2p.statements import Statement


@dataclass(frozen=True)
class PeerJournal:
    """What a peer's journal says.

    Attributes:
        client: Its number, from 1.
        clients: How many peers there are.
        run: Digest of what all peers must agree on.
        weights: By round and neighbour, what it gave.
        own: By round, what it kept, before anything was added late.
        late: Rounds of edges that it added late.
        in_doubt: Rounds of edges whose decision it has not heard.
        missed: Rounds that it was not there for.
        identities: Of this peer and its neighbours, as it knows them.
        said: What it says itself of its rows, and what its neighbours have said to it; with who says it.
        aggregator: What combined the rows; None where it never did.
        promised: Rounds of edges that it has agreed to take in.
        in_doubt_then: Rounds of edges whose decision it did not know when it mixed.
    """

    client: int
    clients: int
    run: str
    weights: dict[int, dict[int, float]]
    own: dict[int, float]
    late: set[tuple[int, int]]
    in_doubt: set[tuple[int, int]]
    missed: int
    identities: dict[int, str]
    said: list[tuple[int, Statement]]
    aggregator: str | None
    promised: set[tuple[int, int]]
    in_doubt_then: set[tuple[int, int]]

    def row(self, round_: int) -> dict[int, float]:
        """Its row of W: all to itself where it was not there."""
        given = self.weights.get(round_, {})
        late = sum(weight for peer, weight in given.items() if (round_, peer) in self.late)
        return {**given, self.client: self.own.get(round_, 1.0) - late}


def read_peer(folder: Path) -> PeerJournal:
    """Read a peer's journal.

    Raises:
        UserError: The folder has none, or it is damaged.
    """
    try:
        events = read_journal(folder)
        return _peer(events)
    except OSError:
        raise UserError(
            f"runs: {folder} has no {JOURNAL_FILE}; give what `fedloom peer` wrote, <out_dir>/<exp_name>"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"runs: {folder / JOURNAL_FILE} is not as fedloom wrote it ({error!r})") from None


def _peer(events: list[dict[str, Any]]) -> PeerJournal:
    about = [event for event in events if event["event"] == "peer"][-1]
    weights: dict[int, dict[int, float]] = {}
    own: dict[int, float] = {}
    late: set[tuple[int, int]] = set()
    missed, aggregator = 0, None
    in_doubt_then: set[tuple[int, int]] = set()
    for mix in valid_mixes(events):
        if mix["event"] == "mixed":
            own[mix["round"]] = mix["own"]
            given = {int(peer): weight for peer, weight in mix["row"].items()}
            weights.setdefault(mix["round"], {}).update(given)
            missed += mix["missed"]
            aggregator = mix.get("aggregator") or "mean"
            in_doubt_then |= {(mix["round"], peer) for peer in mix["in_doubt"]}
        for edge in mix["late"]:
            late.add((edge["round"], edge["peer"]))
            given = weights.setdefault(edge["round"], {})
            # An edge that counts twice must not look right.
            given[edge["peer"]] = given.get(edge["peer"], 0.0) + edge["weight"]
    ready = {(event["round"], event["peer"]) for event in events if event["event"] == "ready"}
    decisions = {
        (event["round"], event["peer"]): event["commit"] for event in events if event["event"] == "decision"
    }
    promised = {edge for edge in {*ready, *decisions} if decisions.get(edge, True)}
    said = [
        (event.get("peer", about["client"]), statement_of(event))
        for event in events
        if event["event"] in ("said", "heard")
    ]
    identities = {int(peer): identity for peer, identity in about.get("identities", {}).items()}
    about_run = (about["client"], about["clients"], about["run"])
    return PeerJournal(
        *about_run,
        weights,
        own,
        late,
        ready - decisions.keys(),
        missed,
        identities,
        said,
        aggregator,
        promised,
        in_doubt_then,
    )
