import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.partition import iid, partition
from fedloom.data.skew import by_field, dirichlet, quantity, shards
from fedloom.errors import UserError

KINDS = ["iid", "dirichlet", "quantity", "shards", "by_field"]


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


def divide(kind, labels, clients, seed, **options):
    """A partition by `kind`; by field, the labels serve as the field's values."""
    return partition(kind, labels, clients, seed=seed, values=labels, **options)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), clients=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_every_kind_is_disjoint_complete_and_large_enough(kind, data, clients, seed):
    # At least 4 of each of 4 labels, so that every kind is possible; the rest in any mixture and order.
    labels = data.draw(
        st.permutations([*"abcd" * 4, *data.draw(st.lists(st.sampled_from("abcd"), max_size=40))])
    )
    shares = divide(kind, labels, clients, seed, alpha=1.0, min_size=2, labels_per_client=4)
    assert len(shares) == clients
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    assert min(map(len, shares)) >= 2
    assert all(np.array_equal(share, np.sort(share)) for share in shares)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_depends_on_its_arguments_alone(kind):
    labels = list("abcdabcdab" * 20)
    first = divide(kind, labels, 4, seed=1)
    np.random.seed(0)
    random.seed(0)
    before = np.random.get_state()[1].copy()
    assert same(divide(kind, labels, 4, seed=1), first)
    assert np.array_equal(np.random.get_state()[1], before), "no global generator was used"
    assert same(divide(kind, labels, 4, seed=2), first) == (kind == "by_field"), "which draws nothing"


def test_partition_chooses_by_name():
    labels = list("aaabbbcccddd")
    assert same(partition("iid", labels, 3, seed=1), map(np.sort, iid(12, 3, 1)))
    assert same(
        partition("dirichlet", labels, 3, seed=1, alpha=0.7, min_size=2), dirichlet(labels, 3, 0.7, 2, 1)
    )
    assert same(partition("quantity", labels, 3, seed=1, alpha=0.7, min_size=2), quantity(12, 3, 0.7, 2, 1))
    assert same(partition("shards", labels, 2, seed=1, labels_per_client=3), shards(labels, 2, 3, 1))
    topics = list("xyzxyzxyzxyz")
    assert same(partition("by_field", labels, 2, seed=1, values=topics), by_field(topics, 2))


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_without_labels_there_is_nothing_to_go_by(kind):
    with pytest.raises(UserError, match=rf"partition is {kind}, .* has none.*--partition quantity .*iid"):
        partition(kind, [""] * 50, 5, seed=1)
    assert len(partition("quantity", [""] * 50, 5, seed=1)) == 5
    assert len(partition("iid", [""] * 50, 5, seed=1)) == 5


@pytest.mark.parametrize("kind", ["iid", "shards", "by_field"])
def test_a_kind_that_cannot_draw_again_says_what_is_possible(kind):
    with pytest.raises(
        UserError, match=rf"min_size is 6, but partition {kind} .* of 2 clients 5\. Use --min_size 5"
    ):
        divide(kind, list("aaaaabbbbb"), 2, seed=1, min_size=6, labels_per_client=1)


def test_more_clients_than_examples_under_the_name_that_peers_have():
    with pytest.raises(UserError, match=r"num_clients is 51, but there are only 50 .*--num_clients 50"):
        partition("iid", [""] * 50, 51, seed=0)


def test_a_field_needs_values():
    with pytest.raises(ValueError, match="values"):
        partition("by_field", ["a"], 1, seed=0)
