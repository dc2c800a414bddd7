"""Peers with small random rows, graphs of them, and training that is a shift."""

from itertools import combinations

import numpy as np
import torch

from fedloom.federation.matrix import RoundMixing
from fedloom.federation.peers import PeerState, Trained
from fedloom.model.bank import AdapterBank

PEERS = 5
SHAPES = {"q.lora_A.weight": (2, 6), "q.lora_B.weight": (4, 2), "score.weight": (3, 4)}


def random_bank(peers=PEERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AdapterBank(
        {n: torch.randn(peers, *s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    )


def graph(edges, weight, peers=PEERS, out=()):
    active = np.array([peer not in out for peer in range(peers)])
    links = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return RoundMixing(links, np.full(len(links), weight), active)


def alone(peers=PEERS):
    return graph([], 0.0, peers)


def uniform(peers=PEERS):
    return graph(list(combinations(range(peers), 2)), 1 / peers, peers)


def ring(peers=PEERS):
    return graph([sorted((i, (i + 1) % peers)) for i in range(peers)], 1 / 3, peers)


def going(shifts, loss=None):
    """Training that shifts each active peer's parameters by its own number."""

    def train(state, who):
        shift = torch.tensor(shifts, dtype=torch.float64) * who
        bank = state.bank.map(lambda t: t + shift.view(-1, *[1] * (t.ndim - 1)))
        losses = torch.where(who, torch.ones(len(who), dtype=torch.float64), torch.nan)
        if loss is not None:
            losses[loss[0]] = loss[1]
        counts = who.long()
        return Trained(bank, state.optimiser, losses, counts, 4 * counts, 10 * counts, state.memory)

    return train


def state_of(bank, optimiser=None):
    return PeerState(0, bank, {} if optimiser is None else optimiser.init(bank))
