from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.draws import draw_batches

INDICES = st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True)
SIZES = st.integers(1, 6)


def test_ten_examples_in_batches_of_four():
    batches = draw_batches(range(10), seed=1, client=0, start=0, count=6, batch_size=4)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*batches[:3])) == sorted(chain(*batches[3:])) == list(range(10))
    assert batches[:3] != batches[3:], "every pass has an order of its own"


@settings(deadline=None)
@given(INDICES, SIZES, st.integers(0, 5), st.integers(0, 100))
def test_each_pass_covers_all_once(indices, batch_size, epoch, seed):
    per_pass = -(-len(indices) // batch_size)
    start = epoch * per_pass
    batches = draw_batches(indices, seed=seed, client=3, start=start, count=per_pass, batch_size=batch_size)
    assert sorted(chain(*batches)) == sorted(indices)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@settings(deadline=None)
@given(INDICES, SIZES, st.integers(0, 30), st.integers(0, 30))
def test_draws_compose(indices, batch_size, first, second):
    def draw(start, count):
        return draw_batches(indices, seed=5, client=1, start=start, count=count, batch_size=batch_size)

    assert draw(0, first) + draw(first, second) == draw(0, first + second)


def test_clients_and_seeds_draw_independently():
    def draw(seed, client):
        return draw_batches(np.arange(50), seed=seed, client=client, start=0, count=5, batch_size=10)

    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0) != draw(1, 1)
    assert draw(1, 0) != draw(2, 0)


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="client 4 has no examples"):
        draw_batches([], seed=0, client=4, start=0, count=1, batch_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        draw_batches([1], seed=0, client=4, start=0, count=1, batch_size=0)
