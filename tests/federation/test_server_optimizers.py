"""What the server does with the combined change, each against its paper's loop over single numbers."""

import math

import pytest
import torch

from fedloom.federation.server_optimizers.adagrad import adagrad
from fedloom.federation.server_optimizers.momentum import momentum
from fedloom.federation.server_optimizers.nesterov import nesterov
from fedloom.model.bank import AdapterBank

CHANGES = [[0.3, -2.0, 0.0], [0.1, 0.001, 0.5], [-1.0, 3.0, 0.2]]
CLIENT_LR = 0.05


def played(optimiser):
    """Where the server is after each of the changes, from 1; and its state."""
    bank = AdapterBank({"w": torch.ones(1, 3, dtype=torch.float64)})
    state, active, places = optimiser.init(bank), torch.ones(1, dtype=torch.bool), []
    for change in CHANGES:
        gradient = AdapterBank({"w": torch.tensor([change], dtype=torch.float64) / -CLIENT_LR})
        bank, state = optimiser.step(bank, gradient, state, active)
        places.append(bank.tensors["w"][0])
    resting, same = optimiser.step(bank, bank, state, ~active)
    assert torch.equal(resting.tensors["w"], bank.tensors["w"])
    assert all(torch.equal(same[key], t) for key, t in state.items())
    return torch.stack(places)


def heavy_ball(lr, beta):
    w, v = [1.0] * 3, [0.0] * 3
    for change in CHANGES:
        for i, d in enumerate(change):
            v[i] = beta * v[i] + d
            w[i] += lr * v[i]
        yield list(w)


def adaptive(lr, tau):
    w, v = [1.0] * 3, [tau**2] * 3
    for change in CHANGES:
        for i, d in enumerate(change):
            v[i] += d**2
            w[i] += lr * d / (math.sqrt(v[i]) + tau)
        yield list(w)


def test_momentum_and_adagrad_are_the_papers_loops():
    for found, loop in (
        (momentum(0.8, lr=0.3, client_lr=CLIENT_LR), heavy_ball(0.3, 0.8)),
        (adagrad(1e-2, lr=0.1, client_lr=CLIENT_LR), adaptive(0.1, 1e-2)),
    ):
        wanted = torch.tensor(list(loop), dtype=torch.float64)
        torch.testing.assert_close(played(found), wanted, rtol=1e-10, atol=1e-10)


def test_nesterov_is_torchs():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    theirs, places = torch.optim.SGD([w], lr=0.7, momentum=0.9, nesterov=True), []
    for change in CHANGES:
        w.grad = -torch.tensor(change, dtype=torch.float64)
        theirs.step()
        places.append(w.detach().clone())
    ours = played(nesterov(0.9, lr=0.7, client_lr=CLIENT_LR))
    torch.testing.assert_close(ours, torch.stack(places), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "degenerate",
    [
        momentum(0.0, lr=1.0, client_lr=CLIENT_LR),
        nesterov(0.0, lr=1.0, client_lr=CLIENT_LR),
        adagrad(1e9, lr=2e9, client_lr=CLIENT_LR),
    ],
    ids=["momentum 0", "nesterov 0", "tau large"],
)
def test_each_is_plain_averaging_in_its_degenerate_case(degenerate):
    averaging = 1 + torch.tensor(CHANGES, dtype=torch.float64).cumsum(0)
    torch.testing.assert_close(played(degenerate), averaging, rtol=0, atol=1e-10)
