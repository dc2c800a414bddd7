"""Rules of peers on a graph against their papers written out, in rounds of peers with quadratic losses."""

import pytest
import torch
from graph_rounds import graph, ring, uniform

from fedloom.client.rules.gradient_tracking import gradient_tracking
from fedloom.client.rules.none import none
from fedloom.client.rules.quasi_global import quasi_global
from fedloom.errors import UserError
from fedloom.federation.algorithm import RULE, SENT, Algorithm, first_peer_memory, part_of, with_prefix
from fedloom.federation.choco import Estimates
from fedloom.federation.codecs.int8 import int8
from fedloom.federation.peers import PeerState, Trained, peer_round
from fedloom.model.bank import AdapterBank

LR, PEERS = 0.05, 5
GENERATOR = torch.Generator().manual_seed(0)
MINIMA = torch.randn(PEERS, 2, generator=GENERATOR, dtype=torch.float64)
STIFFNESS = torch.arange(1, PEERS + 1, dtype=torch.float64)[:, None]
BEST = (STIFFNESS * MINIMA).sum(0) / STIFFNESS.sum()
FAULTY = graph([(0, 1), (2, 3)], 0.5, out=(4,))
TRACKING = gradient_tracking(lr=LR, client_optimizer="sgd")


def gradient(y):
    return STIFFNESS * (y - MINIMA)


def trained(rule, steps):
    """Trains peers by their rule on losses a_i ‖w − m_i‖² / 2, as the runtime does."""

    def train(state, who):
        start, memory = state.bank, part_of(state.memory, RULE)
        received, bank = part_of(state.memory, SENT), state.bank
        on = who[:, None]
        for _ in range(steps):
            g = rule.correct(AdapterBank({"w": gradient(bank.tensors["w"])}), bank, start, memory, received)
            bank = bank.map(lambda w, g: torch.where(on, w - LR * g, w), g)
        memory, sent = rule.finish(start, bank, torch.full((PEERS,), steps), memory, received)
        new = with_prefix(RULE, memory) | with_prefix(SENT, sent)
        active = {
            name: torch.where(who.view(-1, *[1] * (t.ndim - 1)), t, state.memory[name])
            for name, t in new.items()
        }
        counts = who.long()
        return Trained(bank, {}, who.double(), counts, counts, counts, active)

    return train


def play(rule, matrices, steps=3, codec=None):
    """The peers' state after a round on each of the matrices."""
    algorithm = Algorithm(LR, rule=rule) if codec is None else Algorithm(LR, rule=rule, codec=codec)
    row = {"w": torch.zeros(2, dtype=torch.float64)}
    memory = first_peer_memory(algorithm, row, PEERS)
    sent = row | {name: t for name, t in memory.items() if name.startswith(SENT)}
    bank = AdapterBank.repeat(row, PEERS)
    rows = {name: t.expand(PEERS, *t.shape).clone() for name, t in memory.items()}
    state = PeerState(0, bank, {}, Estimates(sent), rows)
    for matrix in matrices:
        state, _ = peer_round(state, trained(rule, steps), matrix, sent, algorithm)
    return state


def dense(matrix):
    return torch.as_tensor(matrix.dense(), dtype=torch.float64)


def test_quasi_global_momentum_is_the_papers_algorithm():
    mu, steps, matrices = 0.7, 3, [ring(), uniform(), ring(), ring()]
    found = play(quasi_global(mu, lr=LR, client_optimizer="sgd"), matrices, steps).bank.tensors["w"]
    x = m = torch.zeros(PEERS, 2, dtype=torch.float64)
    for matrix in matrices:
        y = x
        for _ in range(steps):
            y = y - LR * (gradient(y) + mu * m)
        after = dense(matrix) @ y
        m, x = mu * m + (1 - mu) * (x - after) / (steps * LR), after
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_without_momentum_it_is_plain_gossip():
    matrices = [ring(), FAULTY, ring()]
    found = play(quasi_global(0.0, lr=LR, client_optimizer="sgd"), matrices)
    torch.testing.assert_close(found.bank.tensors, play(none(), matrices).bank.tensors, rtol=0, atol=1e-10)


def test_gradient_tracking_is_the_papers_algorithm():
    steps, matrices = 3, [ring(), uniform(), ring(), ring()]
    found = play(TRACKING, matrices, steps)
    x = c = torch.zeros(PEERS, 2, dtype=torch.float64)
    for matrix in matrices:
        y = x
        for _ in range(steps):
            y = y - LR * (gradient(y) + c)
        z = (x - y) / (steps * LR)
        x, c = dense(matrix) @ y, c - z + dense(matrix) @ z
    torch.testing.assert_close(found.bank.tensors["w"], x, rtol=1e-10, atol=1e-10)
    correction = (found.memory[RULE + "w"] + found.memory[SENT + "w"]) / LR
    torch.testing.assert_close(correction, c, rtol=1e-10, atol=1e-10)


def test_with_one_step_it_tracks_the_mean_gradient():
    """ATC-DIGing: y ← W y + g(x⁺) − g(x), x⁺ = W (x − η y)."""
    matrices = [ring()] * 6
    found = play(TRACKING, matrices, steps=1).bank.tensors["w"]
    W, x = dense(ring()), torch.zeros(PEERS, 2, dtype=torch.float64)
    y = gradient(x)
    for _ in matrices:
        after = W @ (x - LR * y)
        y, x = W @ y + gradient(after) - gradient(x), after
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("codec", [None, int8()], ids=["as it is", "int8"])
def test_corrections_sum_to_zero_whatever_fails_and_is_lost(codec):
    matrices = [ring(), FAULTY, ring(), FAULTY, graph([(1, 3)], 0.3)]
    found = play(TRACKING, matrices, codec=codec)
    corrections = (found.memory[RULE + "w"] + found.memory[SENT + "w"]) / LR
    assert corrections.norm() > 0.1
    torch.testing.assert_close(corrections.sum(0), torch.zeros(2).double(), rtol=0, atol=1e-10)


def test_tracking_finds_the_minimum_of_unlike_peers_and_plain_gossip_does_not():
    def apart(rule):
        return (play(rule, [ring()] * 150).bank.tensors["w"] - BEST).norm(dim=1).max()

    assert apart(TRACKING) < 1e-5 < 0.1 < apart(none())


@pytest.mark.parametrize("rule", [quasi_global, gradient_tracking])
def test_what_reads_gradients_off_steps_asks_for_sgd(rule):
    with pytest.raises(UserError, match="choose --client_optimizer sgd"):
        rule(lr=LR, client_optimizer="adam")
    with pytest.raises(UserError, match="quasi_global:1 is no momentum"):
        quasi_global(1.0, lr=LR, client_optimizer="sgd")
