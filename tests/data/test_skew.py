from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data import skew
from fedloom.data.skew import by_field, dirichlet, quantity, shards
from fedloom.errors import UserError

LABELS = list("abcd" * 100)


def sizes(shares):
    return [len(share) for share in shares]


def counts(labels, shares):
    """For each client how many of each label it has."""
    return [Counter(labels[place] for place in share) for share in shares]


def unevenness(labels, shares):
    """Mean share that a client's most frequent label has of its examples: 1 / labels up to 1."""
    return np.mean([max(count.values()) / count.total() for count in counts(labels, shares)])


def test_a_small_alpha_is_uneven_a_large_one_nearly_even():
    by_alpha = [unevenness(LABELS, dirichlet(LABELS, 5, alpha, 1, seed=3)) for alpha in (0.1, 1.0, 1000.0)]
    assert by_alpha[0] > 0.6 > by_alpha[1] > by_alpha[2]
    assert by_alpha[2] < 0.3
    assert max(sizes(dirichlet(LABELS, 5, 1000.0, 1, seed=3))) < 90


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([0.05, 0.3, 1.0, 10.0]), st.integers(1, 12), st.integers(0, 2**32))
def test_every_client_has_min_size(alpha, min_size, seed):
    shares = dirichlet(LABELS, 4, alpha, min_size, seed)
    assert min(sizes(shares)) >= min_size
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(LABELS)))
    assert all(np.array_equal(share, np.sort(share)) for share in shares)


def test_draws_are_repeated_until_min_size_holds(monkeypatch):
    monkeypatch.setattr(skew, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="none of 1 draws"):
        dirichlet(LABELS, 10, 0.3, 15, seed=4)
    monkeypatch.setattr(skew, "ATTEMPTS", 1000)
    assert min(sizes(dirichlet(LABELS, 10, 0.3, 15, seed=4))) >= 15


def test_a_label_is_dealt_out_at_random():
    first, second = (dirichlet(["a"] * 100, 2, 1000.0, 1, seed)[0] for seed in (1, 2))
    assert not np.array_equal(first, np.arange(len(first)))
    assert len(set(first.tolist()) & set(second.tolist())) < 40


def test_the_proportions_are_those_of_the_distribution():
    # Of Dirichlet(1, 1) a client's share is uniform on [0, 1]: mean 1/2, variance 1/12.
    drawn = np.array([len(dirichlet(["a"] * 1000, 2, 1.0, 1, seed)[0]) / 1000 for seed in range(400)])
    assert abs(drawn.mean() - 1 / 2) < 0.05
    assert abs(drawn.var() - 1 / 12) < 0.015


def test_quantity_is_dirichlet_over_one_label():
    assert sizes(quantity(100, 5, 0.5, 1, seed=1)) == sizes(dirichlet(["a"] * 100, 5, 0.5, 1, seed=1))
    assert max(sizes(quantity(1000, 5, 0.3, 1, 7))) > 2 * min(sizes(quantity(1000, 5, 0.3, 1, 7)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5, 1), "num_clients is 0 and min_size 1; both must be at least 1"),
        ((5, 0.5, 0), "num_clients is 5 and min_size 0; both must be at least 1"),
        ((5, 0.0, 1), "alpha is 0.0; it must be above 0"),
        ((5, -1.0, 1), "alpha is -1.0; it must be above 0"),
        ((5, float("nan"), 1), "alpha is nan; it must be above 0"),
        (
            (5, 0.5, 81),
            "needs 405 examples, but there are 400. Use --min_size 80 or less, or --num_clients 4 or less",
        ),
        ((401, 0.5, 1), "needs 401 examples, but there are 400. Use --num_clients 400 or less, or more data"),
        ((1, 0.5, 500), "needs 500 examples, but there are 400. Use --min_size 400 or less, or more data"),
    ],
)
def test_what_is_out_of_range(arguments, message):
    with pytest.raises(UserError) as caught:
        dirichlet(LABELS, *arguments, seed=1)
    assert message in str(caught.value)


def test_a_split_that_no_draw_gives_says_what_is_possible():
    with pytest.raises(
        UserError,
        match=r"min_size is 80, but none of 1000 draws with alpha 0\.1 gave each of the 5 clients so many of "
        r"the 400 examples; the best gave the smallest client (\d+)\. Use --min_size (\d+) or less, a larger",
    ) as caught:
        dirichlet(LABELS, 5, 0.1, 80, seed=1)
    best = int(str(caught.value).partition("--min_size ")[2].split()[0])
    assert min(sizes(dirichlet(LABELS, 5, 0.1, best, seed=1))) == best, "what it says is possible is"
    with pytest.raises(UserError, match=r"smallest client 0\. Use a larger --alpha, or fewer clients"):
        dirichlet(LABELS, 100, 0.01, 1, seed=1)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e6, 1e300])
def test_no_alpha_is_too_extreme_for_arithmetic(alpha):
    try:
        shares = dirichlet(LABELS, 4, alpha, 1, seed=1)
    except UserError as error:
        assert alpha < 1 and "a larger --alpha" in str(error)
    else:
        assert sorted(np.concatenate(shares).tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize("divide", [lambda *of: dirichlet(*of, 1.0, 1, 1), lambda *of: shards(*of, 1, 1)])
def test_a_label_for_every_example_is_told_at_once(divide):
    labels = [str(n) for n in range(20_000)]
    with pytest.raises(
        UserError, match=r"20,000 labels to divide among 2,000 clients.* --partition quantity"
    ):
        divide(labels, 2000)


def test_ten_clients_with_two_of_four_labels_each():
    shares = shards(LABELS, 10, 2, seed=1)
    assert [len(count) for count in counts(LABELS, shares)] == [2] * 10
    assert sizes(shares) == [40] * 10, "a label's 100 examples are divided among 5 clients"


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(0, 2**32))
def test_every_client_has_exactly_so_many_labels(data, clients, seed):
    labels = data.draw(st.permutations([label for label in "abcde" for _ in range(clients)]))
    labels += data.draw(st.lists(st.sampled_from("abcde"), max_size=30))
    each = data.draw(st.integers(-(-5 // clients), 5))
    shares = shards(labels, clients, each, seed)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    assert [len(count) for count in counts(labels, shares)] == [each] * clients


def test_a_label_with_more_examples_has_more_clients():
    labels = [*"a" * 80, *"b" * 20]
    having = Counter(label for count in counts(labels, shards(labels, 10, 1, seed=1)) for label in count)
    assert having == {"a": 8, "b": 2}


@pytest.mark.parametrize(
    ("labels", "clients", "each", "message"),
    [
        ("abcd", 2, 0, "labels_per_client is 0; the data has 4 labels (a, b, c, d), so it must be 1 to 4"),
        ("abcd", 2, 5, "labels_per_client is 5; the data has 4 labels (a, b, c, d), so it must be 1 to 4"),
        ("abcdefghijkl", 2, 13, "the data has 12 labels (a, b, c, d, e, f, g, h, i, j, ...), so"),
        ("abcd", 3, 1, "3 clients have 3 of the 4 labels at most, and the others' examples would be left "
         "out. Use --labels_per_client 2 or more"),
        ("aaab", 4, 2, "an example for each of 8 pairs of client and label, but the data can fill 4 at most"),
        ("abcd", 5, 1, "needs 5 examples, but there are 4"),
    ],
)  # fmt: skip
def test_too_few_labels_clients_or_examples(labels, clients, each, message):
    with pytest.raises(UserError) as caught:
        shards(list(labels), clients, each, seed=1)
    assert message in str(caught.value)


def test_a_field_keeps_its_examples_together():
    hospitals = ["north", "south", "north", "east", "south", "north"]
    assert [share.tolist() for share in by_field(hospitals)] == [[0, 2, 5], [1, 4], [3]]
    # The largest for itself, the two small ones together.
    assert [share.tolist() for share in by_field(hospitals, 2)] == [[0, 2, 5], [1, 3, 4]]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.data())
def test_no_value_lies_with_two_clients(values, data):
    clients = data.draw(st.integers(1, len(set(values))))
    shares = by_field(values, clients)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(values)))
    assert min(sizes(shares)) >= 1
    owners = Counter(value for share in shares for value in {values[place] for place in share})
    assert set(owners.values()) == {1}


def test_the_order_of_the_rows_does_not_decide_who_has_which_value():
    values = list("abcdeabcab")
    of_client = [{values[place] for place in share} for share in by_field(values, 3)]
    backwards = values[::-1]
    assert [{backwards[place] for place in share} for share in by_field(backwards, 3)] == of_client


def test_fewer_values_than_clients():
    with pytest.raises(
        UserError, match=r"num_clients is 3, but the field has 2 different .*--num_clients 1 to 2"
    ):
        by_field(["a", "b", "a"], 3)
    with pytest.raises(UserError, match="num_clients is 0"):
        by_field(["a"], 0)
