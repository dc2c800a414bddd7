"""FedDyn against the paper's algorithm written out, in rounds of a server with quadratic clients."""

import torch
from updates import update_by

from fedloom.client.rules.feddyn import feddyn
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.server import federated_round, initial_state
from fedloom.model.bank import AdapterBank

LR, STEPS, ALPHA = 0.1, 30, 0.7
MINIMA = torch.tensor([[1.0, 0.0], [-3.0, 2.0], [0.5, 4.0]], dtype=torch.float64)
STIFFNESS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
SAMPLES = [[0, 2], [1, 2], [0, 1], [0, 1, 2]]


def play(rounds, sampled, sizes=(1, 1, 1)):
    """The server's adapter, h and what clients remember, after some rounds of losses a_k ‖w − m_k‖² / 2."""
    rule = feddyn(ALPHA, client_lr=LR)
    algorithm = Algorithm(LR, rule=rule)
    state = initial_state({"w": torch.zeros(2, dtype=torch.float64)}, algorithm)
    memories = [rule.memory(state.adapter)["w"] for _ in MINIMA]

    def train(round_, clients, trained, frozen, received):
        assert not received, "h stays at the server"
        start = AdapterBank.repeat(trained, len(clients))
        bank, memory = start, {"w": torch.stack([memories[k] for k in clients])}
        for _ in range(STEPS):
            pull = STIFFNESS[clients, None] * (bank.tensors["w"] - MINIMA[clients])
            gradients = rule.correct(AdapterBank({"w": pull}), bank, start, memory, received)
            bank = bank.map(lambda w, g: w - LR * g, gradients)
        after, sent = rule.finish(start, bank, torch.full((len(clients),), STEPS), memory, received)
        assert not sent, "nothing but the change crosses the wire"
        for place, k in enumerate(clients):
            memories[k] = after["w"][place]
            yield update_by(k, {"w": bank.tensors["w"][place] - trained["w"]}, sizes[k])

    for round_ in range(rounds):
        state, report = federated_round(state, sampled(round_), train, algorithm, of=len(MINIMA))
        assert report.bytes_up == report.bytes_down == 16 * len(sampled(round_))
    return state.adapter["w"], state.rule["h.w"], memories


def test_it_is_the_papers_algorithm():
    sampled = lambda round_: SAMPLES[round_ % 4]  # noqa: E731
    found, kept, memories = play(9, sampled)
    w, h, own = torch.zeros(2).double(), torch.zeros(2).double(), [torch.zeros(2).double() for _ in MINIMA]
    for round_ in range(9):
        ends = []
        for k in sampled(round_):
            theta = w.clone()
            for _ in range(STEPS):
                theta = theta - LR * (STIFFNESS[k] * (theta - MINIMA[k]) - own[k] + ALPHA * (theta - w))
            own[k] = own[k] - ALPHA * (theta - w)
            ends.append(theta)
        h = h - ALPHA / 3 * sum(theta - w for theta in ends)
        w = sum(ends) / len(ends) - h / ALPHA
    for mine, theirs in ((found, w), (kept, h), *zip(memories, own, strict=True)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    # h is the mean of what all clients remember, whoever took part.
    torch.testing.assert_close(kept, torch.stack(memories).mean(0), rtol=1e-10, atol=1e-10)


def test_it_finds_the_minimum_of_unlike_clients_by_their_sizes():
    for sizes in ((1, 1, 1), (5, 1, 2)):
        weights = STIFFNESS * torch.tensor(sizes)
        best = (weights[:, None] * MINIMA).sum(0) / weights.sum()
        found, kept, memories = play(100, lambda round_: [0, 1, 2], sizes)
        torch.testing.assert_close(found, best, rtol=0, atol=1e-8)
        torch.testing.assert_close(kept, torch.zeros(2).double(), rtol=0, atol=1e-8)
        # What a client remembers is the gradient of its own loss there.
        gradients = STIFFNESS[:, None] * (best - MINIMA)
        torch.testing.assert_close(torch.stack(memories), gradients, rtol=0, atol=1e-7)
