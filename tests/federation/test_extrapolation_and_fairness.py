"""FedExP and q-FedAvg, each against its paper's equations written out, and where it is the mean."""

import pytest
import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.fedexp import fedexp
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.qfedavg import qfedavg
from fedloom.model.bank import AdapterBank

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOSSES = torch.tensor([0.4, 2.0, 1.1], dtype=torch.float64)


def changes(deltas):
    """Of two parameters, the second of one number."""
    bank = AdapterBank({"w": deltas, "b": deltas[:, :1].clone()})
    return Changes({"w": deltas[0], "b": deltas[0, :1]}, bank, WEIGHTS, statistics={"loss": LOSSES})


def points(arrived):
    return torch.cat([arrived.deltas.tensors["w"], arrived.deltas.tensors["b"]], 1)


def close(found, wanted):
    torch.testing.assert_close(torch.cat([found["w"], found["b"]]), wanted, rtol=1e-10, atol=1e-12)


def test_fedexp_goes_by_how_far_changes_are_apart():
    arrived = changes(torch.tensor([[1.0, 2.0], [-3.0, 1.0], [2.0, -2.0]], dtype=torch.float64))
    mean = WEIGHTS @ points(arrived)
    step = points(arrived).square().sum() / (2 * 3 * (mean.square().sum() + 0.01))
    assert step > 1
    close(fedexp(0.01)(arrived), step * mean)
    close(fedexp(1e9)(arrived), mean)  # ε is large


def test_fedexp_of_clients_that_agree_is_the_mean():
    same = changes(torch.randn(2, dtype=torch.float64).repeat(3, 1))
    close(fedexp(0.0)(same), points(same)[0])
    still = changes(torch.zeros(3, 2, dtype=torch.float64))
    close(fedexp(0.0)(still), points(still)[0])


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_qfedavg_is_the_papers_sums(q):
    arrived, lipschitz = changes(torch.randn(3, 2, dtype=torch.float64)), 1 / 0.05
    above, below = torch.zeros(3, dtype=torch.float64), 0.0
    for p, loss, delta in zip(WEIGHTS, LOSSES, points(arrived), strict=True):
        down = lipschitz * -delta  # L (w − w_k)
        above += p * loss**q * down
        below += p * (q * loss ** (q - 1) * down.square().sum() + lipschitz * loss**q)
    close(qfedavg(q, client_lr=0.05)(arrived), -above / below)


def test_qfedavg_with_q_of_0_is_the_mean():
    arrived = changes(torch.randn(3, 2, dtype=torch.float64))
    close(qfedavg(0.0, client_lr=0.05)(arrived), torch.cat([*weighted_mean(arrived).values()]))


@pytest.mark.parametrize("wrong", [lambda: fedexp(-1.0), lambda: qfedavg(-1.0, client_lr=0.1)])
def test_a_number_below_0_is_refused(wrong):
    with pytest.raises(UserError, match="must be at least 0, as in"):
        wrong()
