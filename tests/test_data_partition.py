import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.config import UserError
from fedloom.data.partition import iid


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 2**32))
def test_every_example_has_one_client_and_shares_are_even(clients, more, seed):
    examples = clients + more
    shares = iid(examples, clients, seed)
    assert sorted(np.concatenate(shares)) == list(range(examples))
    sizes = [len(share) for share in shares]
    assert len(sizes) == clients and max(sizes) - min(sizes) <= 1 <= min(sizes)


def test_a_seed_decides_who_gets_what():
    assert all(np.array_equal(a, b) for a, b in zip(iid(100, 7, 1), iid(100, 7, 1), strict=True))
    assert not np.array_equal(iid(100, 7, 1)[0], iid(100, 7, 2)[0])
    assert not np.array_equal(np.concatenate(iid(100, 7, 1)), np.arange(100)), "dealt out at random"


def test_one_client_gets_everything():
    (share,) = iid(5, 1, 0)
    assert sorted(share) == [0, 1, 2, 3, 4]


def test_more_clients_than_examples():
    with pytest.raises(UserError, match=r"client_num is 51, but there are only 50 .*--client_num 50"):
        iid(50, 51, 0)
    with pytest.raises(UserError, match="client_num is 0"):
        iid(50, 0, 0)
