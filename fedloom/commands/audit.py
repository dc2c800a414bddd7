"""`fedloom audit`: the journals of all peers held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.errors import UserError
from fedloom.federation.realised import realised_faults
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runtimes.libp2p.journal import JOURNAL_FILE, read_journal, standing_mixes, statement_of
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
    said = [
        (event.get("peer", about["client"]), statement_of(event))
        for event in events
        if event["event"] in ("said", "heard")
    ]
    identities = {int(peer): identity for peer, identity in about.get("identities", {}).items()}
    about_run = (about["client"], about["clients"], about["run"])
    return PeerJournal(*about_run, weights, own, late, ready - decided, missed, identities, said)


def run_audit(runs: Sequence[str]) -> bool:
    """Print what the peers' matrices came to, round by round, and who has told two things.

    Args:
        runs: The folders of all peers' runs.

    Returns:
        Whether every matrix preserves the mean, and nobody has told two things.

    Raises:
        UserError: They are not those of all peers of one run.
    """
    folders = [Path(folder) for folder in runs]
    peers = [read_peer(folder) for folder in folders]
    told = two_things(peers)
    try:
        peers = _together(peers)
    except UserError:
        print(*told, sep="\n", end="\n" if told else "")  # for this the others' journals are not needed
        raise
    rounds = max((round_ for peer in peers for round_ in peer.weights), default=0)
    print("round  edges  late  peers out  realised matrix")
    faulty = [round_ for round_ in range(1, rounds + 1) if _print_round(peers, round_)]
    for peer in peers:
        for round_, other in sorted(peer.in_doubt):
            print(f"peer {peer.client} has not heard what peer {other} decided in round {round_}")
    if faulty:
        print(f"the mean of all peers was not preserved in rounds {', '.join(map(str, faulty))}")
        print("peers that were killed, or are in doubt: start them again with --resume, then audit again")
    else:
        print("every matrix is symmetric and doubly stochastic")
    rows = sum(len(peer.said) for peer in peers)
    print(*told or [f"nobody has told two things, in {rows} statements"], sep="\n")
    error = _consensus_error(folders)
    if error is not None:
        print(f"consensus error of the last adapters: {error:.4g}")
    return not (faulty or told)


def two_things(peers: Sequence[PeerJournal]) -> list[str]:
    """Who has signed two statements of a round, or two that follow the same one: a line for each of them.

    A peer's journal has only what that peer has checked; a statement that nobody has signed is its own doing.
    """
    lines = []
    known: dict[int, dict[str, list[int]]] = {}  # peer → identities → who knows it by them
    of_round: dict[tuple[int, int], dict[str, list[int]]] = {}  # (peer, round) → marks → journals
    after: dict[tuple[int, str], dict[str, list[int]]] = {}  # (peer, the mark before) → marks → journals
    for journal in peers:
        for who, identity in journal.identities.items():
            known.setdefault(who, {}).setdefault(identity, []).append(journal.client)
        for who, said in journal.said:
            if not said.holds(journal.run, who, journal.identities.get(who, "")):
                lines.append(
                    f"peer {journal.client}'s journal has a statement of peer {who} in round {said.round} "
                    "that it has not signed"
                )
                continue
            mark = said.mark(journal.run, who)
            of_round.setdefault((who, said.round), {}).setdefault(mark, []).append(journal.client)
            after.setdefault((who, said.before), {}).setdefault(mark, []).append(journal.client)
    for who, identities in sorted(known.items()):
        if len(identities) > 1:
            lines.append(f"peer {who} has two identities: {_where(identities)}")
    for (who, round_), marks in sorted(of_round.items()):
        if len(marks) > 1:
            lines.append(f"peer {who} told two things in round {round_}: {_where(marks)}")
    for (who, _), marks in sorted(after.items()):
        if len(marks) > 1 and not any(marks.keys() <= found.keys() for found in of_round.values()):
            lines.append(f"peer {who} told two things that follow the same one: {_where(marks)}")
    return lines


def _where(marks: dict[str, list[int]]) -> str:
    found = (
        f"{mark[:12]} (journals of {', '.join(map(str, sorted(set(at))))})" for mark, at in marks.items()
    )
    return ", ".join(found)


def _print_round(peers: list[PeerJournal], round_: int) -> list[str]:
    """Print a line about a round; returns what is wrong with it."""
    matrix = np.zeros((len(peers), len(peers)))
    for i, peer in enumerate(peers):
        for neighbour, weight in peer.row(round_).items():
            matrix[i, neighbour - 1] = weight
    faults = realised_faults(matrix)
    late = {frozenset((peer.client, other)) for peer in peers for r, other in peer.late if r == round_}
    out = ", ".join(str(peer.client) for peer in peers if round_ not in peer.own) or "-"
    verdict = "; ".join(faults) or "symmetric, doubly stochastic"
    print(f"{round_:5}  {np.count_nonzero(np.triu(matrix, 1)):5}  {len(late):4}  {out:9}  {verdict}")
    return faults


def _consensus_error(folders: list[Path]) -> float | None:
    """How far the peers' last adapters are apart; None where one has left none yet."""
    checkpoints = [latest_checkpoint(folder) for folder in folders]
    if None in checkpoints:
        return None
    from safetensors.torch import load_file

    from fedloom.federation.consensus import consensus
    from fedloom.model.bank import AdapterBank

    rows = [load_file(path / "adapter_model.safetensors") for path in checkpoints if path]
    modules = [name.removesuffix(".lora_A.weight") for name in rows[0] if name.endswith(".lora_A.weight")]
    return consensus(AdapterBank.stack(rows), {}, modules).error


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
            f"runs: these are the peers {', '.join(map(str, numbers))} of 1 to {clients}; "
            "give each peer's run once"
        )
    return sorted(peers, key=lambda peer: peer.client)
