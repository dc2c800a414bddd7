"""Training with attackers among the clients or peers of a simulation.

Whoever trains where: what an attacker sends is a function of its own change and of sums over all honest ones,
which every process has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from fedloom.client.work import ClientWork
from fedloom.federation.attacks import Attackers, Sight, Watch
from fedloom.federation.peers import PeerState, Trained
from fedloom.federation.update import Update
from fedloom.model.bank import AdapterBank, Row

Total = Callable[[Row], Row]
"""``sums over what is here -> sums over all processes``."""

Change = Callable[[int, Row], Row]
"""``(client, its change) -> what it sends as that``."""

RunClients = Callable[[Sequence[ClientWork], Change], Iterator[Update]]
"""`in_process.run_clients`, with all but the clients and what becomes of their changes."""

TrainPeers = Callable[..., Trained]
"""`federation.peers.Train`, or `federation.layer_votes.TrainLayers`."""


def attacked_updates(
    run: RunClients,
    work: Sequence[ClientWork],
    clients: Collection[int],
    attackers: Attackers,
    like: Row,
    round_: int,
    total: Total,
) -> Iterator[Update]:
    """The updates of a round's clients; attackers that look at the others come last.

    Args:
        run: Trains clients.
        work: What those of this process do.
        clients: All that take part, here or elsewhere.
        attackers: Which of them attack, and how.
        like: What clients train and send.
        round_: Which round.
        total: Adds what other processes have.
    """
    sight = Sight(len(clients), len(attackers.clients.intersection(clients)))
    first, last = list(work), list[ClientWork]()
    if attackers.attack.looks:
        first = [one for one in work if one.client not in attackers.clients]
        last = [one for one in work if one.client in attackers.clients]
    watch = Watch(like)

    def change(client: int, delta: Row) -> Row:
        if client in attackers.clients:
            return attackers.crafted(client, round_, delta, sight)
        if attackers.attack.looks:
            watch.add(delta)
        return delta

    yield from run(first, change)
    if attackers.attack.looks:
        mean, deviation = watch.seen(total)
        sight = replace(sight, mean=mean, deviation=deviation)
        yield from run(last, change)


def attacked_peers(
    train: TrainPeers,
    attackers: Attackers,
    active: np.ndarray,
    sent: Collection[str],
    local: range,
    total: Total,
) -> TrainPeers:
    """Training after which an attacker's row is where it began and what it sends instead of its change.

    So it attacks from where mixing has brought it; honest changes are seen from its own row.

    Args:
        train: Trains peers.
        attackers: Which of them attack, and how.
        active: Whether each peer takes part in the round.
        sent: Names of what peers send.
        local: The peers of this process.
        total: Adds what other processes have.
    """

    def play(state: PeerState, who: Bool[Tensor, " peers"], *layers: Tensor) -> Trained:
        trained = train(state, who, *layers)
        rows = {name: t for name, t in trained.bank.tensors.items() if name in sent}
        watch = Watch({name: t[0] for name, t in rows.items()})
        going = [peer for peer in local if active[peer]]
        if attackers.attack.looks:
            for peer in going:
                if peer not in attackers.clients:
                    watch.add({name: t[peer - local.start] for name, t in rows.items()})
        mean, deviation = watch.seen(total) if attackers.attack.looks else ({}, {})
        attacking = int(sum(bool(active[peer]) for peer in attackers.clients))
        moved = {name: t.clone() for name, t in rows.items()}
        for peer in going:
            if peer in attackers.clients:
                place = peer - local.start
                begun = {name: state.bank.tensors[name][place] for name in rows}
                seen = {name: t - begun[name] for name, t in mean.items()}
                sight = Sight(int(active.sum()), attacking, seen, deviation)
                delta = {name: t[place] - begun[name] for name, t in rows.items()}
                sent_instead = attackers.crafted(peer, state.round, delta, sight)
                for name, t in sent_instead.items():
                    moved[name][place] = begun[name] + t
        return replace(trained, bank=AdapterBank(trained.bank.tensors | moved))

    return play
