"""Layer scores as a picture."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedloom.runs.heatmap import heatmap

EDGE = (64, 196, 255)


def cell(picture, layer, round_):
    """The middle of a layer's cell in a round's column."""
    return picture[layer * 8 + 4, round_ * 8 + 4].astype(int)


def test_the_highest_score_of_a_round_is_the_lightest_whatever_its_size():
    picture = heatmap([[1.0, 4.0, 2.0], [0.001, 0.002, 0.004]], [[], []])
    assert picture.shape == (3 * 8, 2 * 8, 3) and picture.dtype == np.uint8
    light = [[cell(picture, layer, round_).sum() for layer in range(3)] for round_ in range(2)]
    assert light[0].index(max(light[0])) == 1 and light[1].index(max(light[1])) == 2
    assert max(light[0]) == max(light[1])
    assert light[0][0] < light[0][2] < light[0][1]


def test_selected_layers_have_an_edge():
    picture = heatmap([[1.0, 2.0]], [[1]])
    assert tuple(picture[12, 0]) == EDGE and tuple(picture[4, 0]) != EDGE


def test_a_layer_without_a_score_is_as_dark_as_a_score_of_0():
    picture = heatmap([[0.0, None, math.nan, 1.0]], [[]])
    assert (cell(picture, 0, 0) == cell(picture, 1, 0)).all()
    assert (cell(picture, 0, 0) == cell(picture, 2, 0)).all()


@given(rounds=st.integers(1, 1500), layers=st.integers(1, 4))
def test_a_long_run_keeps_its_first_and_last_round_within_512_columns(rounds, layers):
    scores = [[0.0] * layers for _ in range(rounds)]
    scores[0][0] = scores[-1][0] = 1.0
    picture = heatmap(scores, [[] for _ in range(rounds)])
    assert picture.shape == (layers * 8, min(rounds, 512) * 8, 3)
    assert (picture[4, 4] == picture[4, -4]).all() and picture[4, 4].sum() > 400
