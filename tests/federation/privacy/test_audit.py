"""The one-run audit: its bound against the guessing game it is about, played; and where it is degenerate."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import norm

from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError
from fedloom.federation.privacy.audit import audit, log_likelihood_ratio, lower_bound, p_value


def told(canaries, epsilon, game):
    """Fair coins, and what randomised response tells of each: right with probability e^ε / (1 + e^ε)."""
    rng = numpy_rng(0, "randomised response", game)
    included = rng.random(canaries) < 0.5
    lies = rng.random(canaries) > 1 / (1 + math.exp(-epsilon))
    return (included ^ lies) - 0.5 + 1e-3 * rng.random(canaries), included


def test_no_more_games_of_randomised_response_are_refuted_than_the_level_allows():
    for epsilon in (0.5, 2.0):
        games = [told(100, epsilon, game) for game in range(100)]
        exceed = sum(audit(*game, delta=0.0, level=0.2).epsilon > epsilon for game in games)
        assert exceed <= 0.2 * 100


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_of_many_coins_the_bound_is_nearly_the_truth(epsilon):
    found = audit(*told(200_000, epsilon, 1), delta=0.0)
    assert max(0.0, epsilon - 0.1) <= found.epsilon <= epsilon


def test_the_p_value_is_the_share_of_games_with_so_many_right():
    rng = numpy_rng(1, "games")
    right = (rng.random((100_000, 40)) < 1 / (1 + math.exp(-1.0))).sum(1)
    for v in (28, 32, 36):
        assert p_value(100, 40, v, 1.0, 0.0) == pytest.approx(float((right >= v).mean()), abs=0.005)


def most_right(canaries, guesses, right, epsilon, delta):
    """With what probability the best of all private mechanisms guesses so many right: a linear program.

    Unknown are the probabilities of all guesses for all coins, and by how much each exceeds e^ε times that
    for coins of which one fell otherwise; those excesses sum to δ at most.
    """
    coins = list(product((-1, 1), repeat=canaries))
    said = [t for t in product((-1, 0, 1), repeat=canaries) if sum(map(abs, t)) == guesses]
    numbers = np.arange(len(coins) * len(said)).reshape(len(coins), len(said))
    pairs = [(a, b) for a, s in enumerate(coins) for b, t in enumerate(coins) if np.dot(s, t) == canaries - 2]
    excess = numbers.size + np.arange(len(pairs) * len(said)).reshape(len(pairs), len(said))
    privacy = np.zeros((excess.size + len(pairs), numbers.size + excess.size))
    for p, (a, b) in enumerate(pairs):
        rows = np.arange(p * len(said), (p + 1) * len(said))
        privacy[rows, numbers[a]], privacy[rows, numbers[b]], privacy[rows, excess[p]] = (
            1,
            -math.exp(epsilon),
            -1,
        )
        privacy[excess.size + p, excess[p]] = 1
    at_most = np.repeat([0.0, delta], [excess.size, len(pairs)])
    sums = np.zeros((len(coins), privacy.shape[1]))
    wanted = np.zeros(privacy.shape[1])
    for a, s in enumerate(coins):
        sums[a, numbers[a]] = 1
        wanted[numbers[a]] = [-float(np.equal(s, t).sum() >= right) / len(coins) for t in said]
    return -linprog(wanted, privacy, at_most, sums, np.ones(len(coins))).fun


@pytest.mark.parametrize(
    ("canaries", "guesses", "right"), [(2, 2, 1), (3, 3, 3), (3, 3, 2), (3, 2, 1), (3, 1, 1)]
)
@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.02), (3.0, 0.0), (3.0, 0.02)])
def test_the_p_value_is_what_the_best_private_mechanism_comes_to(canaries, guesses, right, epsilon, delta):
    best = most_right(canaries, guesses, right, epsilon, delta)
    assert p_value(canaries, guesses, right, epsilon, delta) == pytest.approx(best, abs=1e-8)


def test_delta_makes_bounds_smaller_by_degrees():
    bounds = [lower_bound(50, 20, 20, delta) for delta in (0.0, 1e-5, 1e-3, 0.1)]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < bounds[0] - 0.1


def test_of_many_canaries_what_is_too_small_or_large_for_a_number_is_still_a_bound():
    assert p_value(5000, 5000, 2500, 6.0, 1e-5) == 1
    # Whatever may be told with probability δ may be all: no count is less likely than that.
    assert p_value(5000, 5000, 5000, 0.1, 1e-5) == pytest.approx(1e-5)
    bounds = [lower_bound(20_000, 20_000, right, 1e-5) for right in (10_600, 14_800, 19_000, 20_000)]
    assert bounds == sorted(set(bounds)) and bounds[0] > 0 and bounds[-1] < math.inf
    right = np.arange(20_000) % 50 < 37
    included = np.arange(20_000) % 2 == 0
    found = audit(np.where(right == included, 1.0, -1.0), included, 1e-6)
    assert found.right >= 0.74 * found.guesses and 0.9 < found.epsilon < math.log(0.74 / 0.26)


def test_a_mechanism_that_tells_all_with_probability_delta_is_within_the_bound():
    """It is (0, δ)-private for δ = 0.02: then everything is right, else nothing is known."""
    rng = numpy_rng(2, "tells all")
    exceed = 0
    for _ in range(150):
        included = rng.random(40) < 0.5
        scores = included - 0.5 if rng.random() < 0.02 else rng.random(40) - 0.5
        exceed += audit(scores, included, delta=0.02).epsilon > 0
    assert exceed <= 0.05 * 150


@pytest.mark.parametrize("canaries", [1, 2, 3, 200])
def test_all_right_is_as_much_as_so_many_canaries_can_show(canaries):
    q = 0.05 ** (1 / canaries)
    expected = max(0.0, math.log(q / (1 - q)))
    assert lower_bound(canaries, canaries, canaries, 0.0) == pytest.approx(expected, abs=1e-4)
    assert lower_bound(canaries, canaries, 0, 1e-5) == 0.0


def test_the_best_of_several_numbers_of_guesses_counts():
    """A few that are told for certain, of many of which nothing is."""
    rng = numpy_rng(3, "some")
    included = np.arange(400) % 2 == 0
    scores = np.where(included & (rng.random(400) < 0.2), 10.0, 0.0) + rng.random(400)
    found = audit(scores, included, 1e-5)
    assert found.right == found.guesses == 25 and found.epsilon > 1
    nothing = audit(rng.random(400) - 0.5, included, 1e-5)
    assert nothing.epsilon == 0.0 and nothing.guesses == 400


def test_scores_that_are_no_numbers_are_not_a_bound_of_0():
    scores = np.where(np.arange(40) == 3, np.nan, 1.0)
    with pytest.raises(UserError, match="canaries: the scores of 1 of 40 are not finite"):
        audit(scores, np.arange(40) % 2 == 0, 1e-5)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_the_score_is_the_ratio_of_the_two_densities(rate):
    x, noise = np.linspace(-2, 3, 11), 0.7
    within = (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, 1, noise)
    expected = np.log(within / norm.pdf(x, 0, noise))
    assert log_likelihood_ratio(x, rate, noise) == pytest.approx(expected)
    assert np.isfinite(log_likelihood_ratio(np.array([0.0, 1.0]), rate, 0.0)).all()
