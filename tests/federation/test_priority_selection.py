"""Which layers are picked, given scores."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.federation.priority import LAYER_POLICIES, select_layers


def select(scores, highest, lowest, policy="priority", seed=0, round_number=0, numbers=None):
    return select_layers(
        torch.tensor(scores, dtype=torch.float64),
        highest=highest,
        lowest=lowest,
        policy=policy,
        seed=seed,
        round_number=round_number,
        numbers=numbers,
    )


# A few whole numbers, so that there are ties.
many_scores = st.lists(st.integers(-4, 4).map(float) | st.floats(-4, 4), max_size=12)
how_many = st.integers(0, 8)


def test_the_highest_and_the_lowest_are_picked():
    assert select([5.0, 1.0, 9.0, 3.0, 7.0, 0.5], highest=2, lowest=1) == (2, 4, 5)


def test_where_they_would_overlap_the_lowest_go_on_with_what_is_left():
    assert select([5.0, 1.0, 9.0], highest=2, lowest=2) == (0, 1, 2)
    assert select([5.0, 1.0, 9.0], highest=7, lowest=7) == (0, 1, 2)


def test_of_equal_scores_the_lower_layer_comes_first():
    assert select([1.0] * 6, highest=2, lowest=1) == (0, 1, 2)
    assert select([3.0, 1.0, 3.0, 1.0, 3.0, 1.0], highest=2, lowest=1) == (0, 1, 2)


def test_layers_that_were_scored_keep_their_numbers_in_the_model():
    scores, numbers = [2.0, 8.0, 1.0, 5.0], [3, 4, 9, 20]
    assert select(scores, 1, 1, numbers=numbers) == (4, 9)
    assert select(scores, 1, 1, "last", numbers=numbers) == (9, 20)
    assert select(scores, 0, 0, "all", numbers=numbers) == (3, 4, 9, 20)
    assert set(select(scores, 2, 1, "random", numbers=numbers)) < set(numbers)
    with pytest.raises(ValueError, match="layer 9: its score is nan"):
        select([2.0, 8.0, math.nan, 5.0], 1, 1, numbers=numbers)


@settings(deadline=None)
@given(scores=many_scores, highest=how_many, lowest=how_many, policy=st.sampled_from(LAYER_POLICIES))
def test_a_pick_is_ascending_without_repetition_and_as_large_as_asked_for(scores, highest, lowest, policy):
    picked = select(scores, highest, lowest, policy)
    assert list(picked) == sorted(set(picked)) and set(picked) <= set(range(len(scores)))
    assert len(picked) == (len(scores) if policy == "all" else min(highest + lowest, len(scores)))


@settings(deadline=None)
@given(scores=many_scores, highest=how_many, lowest=how_many)
def test_priority_takes_the_two_ends_of_the_ranking(scores, highest, lowest):
    picked, ranking = select(scores, highest, lowest), sorted(scores)
    if highest + lowest >= len(scores):
        expected = ranking
    else:
        expected = ranking[:lowest] + ranking[len(ranking) - highest :]
    assert sorted(scores[layer] for layer in picked) == expected
    assert set(select(scores, highest, 0)) <= set(picked), "the highest keep theirs"


@settings(deadline=None)
@given(
    scores=many_scores, highest=how_many, lowest=how_many, seed=st.integers(0, 99), round_=st.integers(0, 99)
)
def test_random_looks_at_seed_and_round_only(scores, highest, lowest, seed, round_):
    picked = select(scores, highest, lowest, "random", seed, round_)
    assert picked == select([0.0] * len(scores), lowest, highest, "random", seed, round_)


def test_random_differs_from_round_to_round_and_from_seed_to_seed():
    scores = [0.0] * 24
    by_round = {select(scores, 6, 2, "random", seed=1, round_number=number) for number in range(50)}
    by_seed = {select(scores, 6, 2, "random", seed=seed, round_number=1) for seed in range(50)}
    assert len(by_round) > 45 and len(by_seed) > 45
    assert {layer for picked in by_round for layer in picked} == set(range(24))


@settings(deadline=None)
@given(layers=st.integers(1, 12), count=st.integers(1, 12), pass_=st.integers(0, 20))
def test_in_turn_every_pass_takes_every_layer(layers, count, pass_):
    rounds = -(-layers // min(count, layers))
    picked = [
        select([0.0] * layers, count, 0, "in_turn", round_number=pass_ * rounds + number)
        for number in range(rounds)
    ]
    assert all(len(one) == min(count, layers) for one in picked)
    assert {layer for one in picked for layer in one} == set(range(layers))


def test_in_turn_no_layer_meets_the_same_links_of_a_graph_that_changes_by_turns():
    """The one-peer exponential graph of 64 peers has six rounds, as a pass over six layers has."""
    met = {(select([0.0] * 6, 1, 0, "in_turn", round_number=t)[0], t % 6) for t in range(200)}
    assert len(met) == 36


def test_spaced_layers_lie_at_even_distances():
    assert select([0.0] * 30, 6, 2, "spaced") == (1, 5, 9, 13, 16, 20, 24, 28)
    assert select([0.0] * 6, 2, 0, "spaced", numbers=[3, 4, 5, 8, 9, 10]) == (4, 9)


@settings(deadline=None)
@given(scores=many_scores, highest=how_many, lowest=how_many)
def test_spaced_layers_are_as_many_and_none_is_far_from_one(scores, highest, lowest):
    layers, count = len(scores), min(highest + lowest, len(scores))
    picked = select(scores, highest, lowest, "spaced")
    assert len(set(picked)) == count and (count < layers or picked == tuple(range(layers)))
    if count:
        ends = [-picked[0] - 1, *picked, 2 * layers - picked[-1]]
        assert max(b - a for a, b in pairwise(ends)) <= layers / count + 2


@settings(deadline=None)
@given(scores=many_scores, highest=how_many, lowest=how_many)
def test_last_and_first_are_the_two_ends_of_the_model(scores, highest, lowest):
    layers, count = len(scores), min(highest + lowest, len(scores))
    assert select(scores, highest, lowest, "first") == tuple(range(count))
    assert select(scores, highest, lowest, "last") == tuple(range(layers - count, layers))
    assert select(scores, highest, lowest, "all") == tuple(range(layers))


@pytest.mark.parametrize("policy", LAYER_POLICIES)
def test_no_layers_asked_for_are_none_picked(policy):
    assert select([1.0, 2.0], 0, 0, policy) == ((0, 1) if policy == "all" else ())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", LAYER_POLICIES)
def test_a_score_that_is_not_finite_is_an_error_that_names_the_layer(policy, bad):
    with pytest.raises(ValueError, match="layer 2: its score is"):
        select([1.0, 2.0, bad, 4.0], 1, 1, policy)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="layer policy 'lowest': must be one of priority, random"):
        select([1.0], 1, 0, "lowest")
    with pytest.raises(ValueError, match="highest -1, lowest 2"):
        select([1.0], -1, 2)
    for numbers in ([1], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="must be 2 ascending layer numbers"):
            select([1.0, 2.0], 1, 0, numbers=numbers)
