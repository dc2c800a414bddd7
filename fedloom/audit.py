"""`fedloom audit`: the journals of all peers held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.config import UserError
from fedloom.federation.realised import realised_faults
from fedloom.runtimes.libp2p.journal import JOURNAL_FILE, read_journal, standing_mixes


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
    """

    client: int
    clients: int
    run: str
    weights: dict[int, dict[int, float]]
    own: dict[int, float]
    late: set[tuple[int, int]]
    in_doubt: set[tuple[int, int]]
    missed: int

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
            f"runs: {folder} has no {JOURNAL_FILE}; give folders that `fedloom peer` wrote, <out_dir>/<exp_name>"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"runs: {folder / JOURNAL_FILE} is not as fedloom wrote it ({error!r})") from None


def _peer(events: list[dict[str, Any]]) -> PeerJournal:
    about = [event for event in events if event["event"] == "peer"][-1]
    weights: dict[int, dict[int, float]] = {}
    own: dict[int, float] = {}
    late: set[tuple[int, int]] = set()
    missed = 0
    for mix in standing_mixes(events):
        if mix["event"] == "mixed":
            own[mix["round"]] = mix["own"]
            given = {int(peer): weight for peer, weight in mix["row"].items()}
            weights.setdefault(mix["round"], {}).update(given)
            missed += mix["missed"]
        for edge in mix["late"]:
            late.add((edge["round"], edge["peer"]))
            given = weights.setdefault(edge["round"], {})
            # An edge that counts twice must not look right.
            given[edge["peer"]] = given.get(edge["peer"], 0.0) + edge["weight"]
    ready = {(event["round"], event["peer"]) for event in events if event["event"] == "ready"}
    decided = {(event["round"], event["peer"]) for event in events if event["event"] == "decision"}
    return PeerJournal(
        about["client"], about["clients"], about["run"], weights, own, late, ready - decided, missed
    )


def run_audit(runs: Sequence[str]) -> bool:
    """Print what the peers' matrices came to, round by round; returns whether every one preserves the mean.

    Args:
        runs: The folders of all peers' runs.

    Raises:
        UserError: They are not those of all peers of one run.
    """
    peers = _together([read_peer(Path(folder)) for folder in runs])
    rounds = max((round_ for peer in peers for round_ in peer.weights), default=0)
    print("round  edges  late  peers out  realised matrix")
    right = True
    for round_ in range(1, rounds + 1):
        matrix = np.zeros((len(peers), len(peers)))
        for i, peer in enumerate(peers):
            for neighbour, weight in peer.row(round_).items():
                matrix[i, neighbour - 1] = weight
        faults = realised_faults(matrix)
        right = right and not faults
        out = [peer.client for peer in peers if round_ not in peer.own]
        late = {
            tuple(sorted((peer.client, other))) for peer in peers for r, other in peer.late if r == round_
        }
        edges = np.count_nonzero(np.triu(matrix, 1))
        verdict = "; ".join(faults) if faults else "symmetric, doubly stochastic"
        print(f"{round_:5}  {edges:5}  {len(late):4}  {', '.join(map(str, out)) or '-':9}  {verdict}")
    for peer in peers:
        for round_, other in sorted(peer.in_doubt):
            print(
                f"peer {peer.client} has not heard what peer {other} decided in round {round_}; --resume asks"
            )
    print("every matrix preserves the mean" if right else "not every matrix preserves the mean")
    return right


def _together(peers: list[PeerJournal]) -> list[PeerJournal]:
    if not peers:
        raise UserError(
            "runs: none given; name the folders of all peers' runs, such as runs/peer-1 runs/peer-2"
        )
    if len({peer.run for peer in peers}) > 1:
        raise UserError("runs: these peers are not of one run, their options differ; give those of one run")
    numbers, clients = sorted(peer.client for peer in peers), peers[0].clients
    if numbers != list(range(1, clients + 1)):
        raise UserError(
            f"runs: these are the peers {', '.join(map(str, numbers))} of 1 to {clients}; give each peer's run once"
        )
    return sorted(peers, key=lambda peer: peer.client)
