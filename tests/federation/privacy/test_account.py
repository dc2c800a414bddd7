"""Epsilon against dp-accounting called directly, and against the definition."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

if find_spec("dp_accounting") is None:
    pytest.skip("dp-accounting is not installed", allow_module_level=True)

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account, find_noise
from fedloom.federation.privacy.user import UserPrivacy

RATE, NOISE, DELTA = 0.05, 1.0, 1e-5


def direct(accountant, rounds, rate=RATE, event=None):
    """What the library says of so many rounds."""
    round_ = dp_accounting.PoissonSampledDpEvent(rate, event or dp_accounting.GaussianDpEvent(NOISE))
    return accountant.compose(round_, rounds).get_epsilon(DELTA)


@pytest.mark.parametrize(("rate", "rounds"), [(RATE, 1), (RATE, 100), (1.0, 40)])
def test_epsilon_is_the_librarys(rate, rounds):
    renyi, losses = Account(rate, NOISE, DELTA, "rdp"), Account(rate, NOISE, DELTA, "pld")
    assert renyi.epsilon(rounds) == pytest.approx(direct(RdpAccountant(), rounds, rate), rel=1e-12)
    fine = direct(PLDAccountant(value_discretization_interval=1e-3), rounds, rate)
    # On a coarser grid it is a little larger, never smaller.
    assert fine <= losses.epsilon(rounds) * (1 + 1e-9) < fine * 1.001 < renyi.epsilon(rounds) * 1.2


def delta_by_definition(epsilon, noise, rate):
    """The largest of P(O) − e^ε P′(O) over all sets O of what a round shows, with a client and without it."""
    x = np.linspace(-12 * noise, 1 + 12 * noise, 200_001)
    without = norm.pdf(x, 0, noise)
    within = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    ways = (within - math.exp(epsilon) * without, without - math.exp(epsilon) * within)
    return max(trapezoid(np.maximum(way, 0.0), x) for way in ways)


@pytest.mark.parametrize("kind", ["pld", "rdp"])
@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.05), (0.6, 0.05), (2.0, 0.5), (1.0, 1.0)])
def test_epsilon_of_a_round_bounds_what_it_tells_of_a_client_there_or_not(noise, rate, kind):
    epsilon = Account(rate, noise, DELTA, kind).epsilon(1)
    assert delta_by_definition(epsilon, noise, rate) <= DELTA
    if kind == "pld":  # and hardly any less would
        assert delta_by_definition(epsilon * 0.99, noise, rate) > DELTA


def test_epsilon_of_rounds_of_everybody_is_that_of_one_with_less_noise():
    for kind in ("pld", "rdp"):
        epsilon = Account(1.0, 4.0, DELTA, kind).epsilon(16)
        assert delta_by_definition(epsilon, 4.0 / math.sqrt(16), 1.0) <= DELTA
    assert delta_by_definition(Account(1.0, 4.0, DELTA).epsilon(16) * 0.99, 1.0, 1.0) > DELTA


def test_epsilon_is_a_function_of_the_round_alone():
    unbroken, resumed = Account(RATE, NOISE, DELTA), Account(RATE, NOISE, DELTA)
    found = [unbroken.epsilon(rounds) for rounds in range(71)]
    assert found[0] == 0 and found == sorted(set(found))
    assert resumed.epsilon(70) == found[70]


def test_no_noise_costs_everything():
    assert Account(RATE, 0.0, DELTA).epsilon(1) == float("inf")


def test_adaptive_clipping_costs_what_its_two_sums_cost():
    privacy = UserPrivacy(0.1, 0.5, NOISE, clients=400, per_round=20)
    assert privacy.sum_noise > NOISE
    # A client moves the sum of bits by a half.
    both = [dp_accounting.GaussianDpEvent(z) for z in (privacy.sum_noise, 2 * privacy.count_noise)]
    found = direct(RdpAccountant(), 30, event=dp_accounting.ComposedDpEvent(both))
    assert Account(0.05, NOISE, DELTA, "rdp").epsilon(30) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("kind", ["pld", "rdp"])
@pytest.mark.parametrize("target", [2.0, 100.0])
def test_the_noise_is_the_least_that_keeps_to_the_target(kind, target):
    noise = find_noise(target, 20, RATE, DELTA, kind)
    assert Account(RATE, noise, DELTA, kind).epsilon(20) <= target
    assert Account(RATE, noise * 0.998, DELTA, kind).epsilon(20) > target


def test_a_target_out_of_reach_is_an_error():
    with pytest.raises(UserError, match=r"target_epsilon: 1e\+06 is so large"):
        find_noise(1e6, 1, RATE, DELTA, "rdp")
