"""`fedloom audit`: the journals of all peers held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedloom.errors import UserError
from fedloom.federation.realised import neighbourhood_faults, realised_faults
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runtimes.libp2p.peer_journal import PeerJournal, read_peer


def run_audit(runs: Sequence[str]) -> bool:
    """Print what the peers' matrices came to, round by round, and who has told two things.

    Args:
        runs: The folders of all peers' runs.

    Returns:
        Whether every matrix preserves the mean, or with another aggregator than the mean whether both ends
        agreed on every row that was taken in; and nobody has told two things.

    Raises:
        UserError: They are not those of all peers of one run.
    """
    folders = [Path(folder) for folder in runs]
    peers = [read_peer(folder) for folder in folders]
    conflicts = two_things(peers)
    try:
        peers = _together(peers)
    except UserError:
        # For this the others' journals are not needed.
        print(*conflicts, sep="\n", end="\n" if conflicts else "")
        raise
    rounds = max((round_ for peer in peers for round_ in peer.weights), default=0)
    aggregator = next((peer.aggregator for peer in peers if peer.aggregator), "mean")
    linear = aggregator == "mean"
    print(f"round  edges  late  peers out  {'realised matrix' if linear else 'neighbourhoods'}")
    faulty = [
        round_
        for round_ in range(1, rounds + 1)
        if (_print_round if linear else _print_neighbourhoods)(peers, round_)
    ]
    for peer in peers:
        for round_, other in sorted(peer.in_doubt):
            print(f"peer {peer.client} has not heard what peer {other} decided in round {round_}")
    if faulty:
        what = "the mean of all peers was not preserved" if linear else "peers took in what was not agreed on"
        print(f"{what} in rounds {', '.join(map(str, faulty))}")
        print("peers that were killed, or are in doubt: start them again with --resume, then audit again")
    elif linear:
        print("every matrix is symmetric and doubly stochastic")
    else:
        print(f"every row was taken in as both ends agreed; {aggregator} does not keep the mean of all peers")
    rows = sum(len(peer.said) for peer in peers)
    print(*conflicts or [f"nobody has told two things, in {rows} statements"], sep="\n")
    error = _consensus_error(folders)
    if error is not None:
        print(f"consensus error of the last adapters: {error:.4g}")
    return not (faulty or conflicts)


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


def _print_neighbourhoods(peers: list[PeerJournal], round_: int) -> list[str]:
    """Print a line about a round whose aggregator is not linear; returns what is wrong with it."""
    rows = {peer.client: peer.row(round_) for peer in peers if round_ in peer.own}
    promised, in_doubt = (
        {(peer.client, other) for peer in peers for r, other in edges(peer) if r == round_}
        for edges in (lambda peer: peer.promised, lambda peer: peer.in_doubt_then)
    )
    faults = neighbourhood_faults(rows, promised, in_doubt)
    edges = {frozenset((peer, other)) for peer, row in rows.items() for other in row if other != peer}
    out = ", ".join(str(peer.client) for peer in peers if round_ not in peer.own) or "-"
    print(f"{round_:5}  {len(edges):5}  {0:4}  {out:9}  {'; '.join(faults) or 'as both ends agreed'}")
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
    combined_by = sorted({peer.aggregator for peer in peers if peer.aggregator})
    if len(combined_by) > 1:
        raise UserError(
            f"runs: the journals say that rows were combined by {' and by '.join(combined_by)}, and in one "
            "run all peers do the same; one of them is not as fedloom wrote it"
        )
    numbers, clients = sorted(peer.client for peer in peers), peers[0].clients
    if numbers != list(range(1, clients + 1)):
        raise UserError(
            f"runs: these are the peers {', '.join(map(str, numbers))} of 1 to {clients}; "
            "give each peer's run once"
        )
    return sorted(peers, key=lambda peer: peer.client)
