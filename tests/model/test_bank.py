"""The adapter bank: federation is algebra over its first axis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.model.bank import AdapterBank, bytes_of

SHAPES = {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (4, 2), "head.bias": (3,)}


def random_row(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).double() for name, shape in SHAPES.items()}


def random_bank(clients):
    return AdapterBank.stack([random_row(seed) for seed in range(clients)])


def test_a_bank_of_stacked_rows_gives_the_rows_back():
    rows = [random_row(seed) for seed in range(3)]
    bank = AdapterBank.stack(rows)
    assert bank.clients == 3
    for k, row in enumerate(rows):
        assert bank.row(k).keys() == row.keys()
        assert all(torch.equal(bank.row(k)[name], row[name]) for name in SHAPES)


def test_repeat_copies_the_row_for_every_client():
    row = random_row(0)
    bank = AdapterBank.repeat(row, 3)
    bank.tensors["head.bias"][1] += 1
    assert torch.equal(bank.row(0)["head.bias"], row["head.bias"])
    assert torch.equal(bank.row(2)["head.bias"], row["head.bias"])
    assert torch.equal(bank.row(1)["head.bias"], row["head.bias"] + 1)


def test_rows_come_in_the_order_asked_for_and_are_copies():
    bank = random_bank(4)
    some = bank.rows([3, 1, 3])
    assert [float(x) for x in some.tensors["head.bias"][:, 0]] == [
        float(bank.tensors["head.bias"][k, 0]) for k in (3, 1, 3)
    ]
    some.tensors["head.bias"].zero_()
    assert torch.equal(bank.row(3)["head.bias"], random_row(3)["head.bias"])


def test_map_goes_name_by_name_over_several_banks():
    a, b = random_bank(3), random_bank(3).map(lambda t: t * 2)
    difference = a.map(lambda x, y: y - x, b)
    assert all(torch.equal(difference.tensors[name], a.tensors[name]) for name in SHAPES)


def test_bytes_count_what_would_cross_the_wire():
    numbers = 2 * 3 + 4 * 2 + 3
    assert bytes_of(random_bank(5).row(0)) == numbers * 8
    assert bytes_of(random_bank(5).map(lambda t: t.float()).row(0)) == numbers * 4
    assert bytes_of(random_row(0)) == numbers * 8


def test_norms_are_those_of_all_parameters_of_a_client_together():
    bank = random_bank(3)
    for k in range(3):
        flat = torch.cat([t.flatten() for t in bank.row(k).values()])
        assert float(bank.norms()[k]) == pytest.approx(float(flat.norm()), rel=1e-12)


weights_of_clients = st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01)


@settings(max_examples=50, deadline=None)
@given(weights_of_clients, st.floats(0.01, 100))
def test_the_mean_is_weighted_and_only_the_weights_ratios_count(weights, scale):
    bank, w = random_bank(len(weights)), torch.tensor(weights, dtype=torch.float64)
    mean, scaled = bank.mean(w), bank.mean(w * scale)
    for name in SHAPES:
        by_hand = sum(x * bank.row(k)[name] for k, x in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(mean[name], by_hand, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mean[name], scaled[name], rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(weights_of_clients, st.randoms())
def test_the_mean_does_not_depend_on_the_order_of_clients(weights, rng):
    bank, w = random_bank(len(weights)), torch.tensor(weights, dtype=torch.float64)
    order = list(range(len(weights)))
    rng.shuffle(order)
    shuffled = bank.rows(order).mean(w[order])
    for name, t in bank.mean(w).items():
        torch.testing.assert_close(shuffled[name], t, rtol=1e-12, atol=1e-12)


def test_the_mean_of_equal_rows_is_the_row():
    row = random_row(7)
    mean = AdapterBank.repeat(row, 5).mean(torch.arange(1.0, 6.0).double())
    for name in SHAPES:
        torch.testing.assert_close(mean[name], row[name], rtol=1e-12, atol=0)


def test_a_weight_of_zero_leaves_a_client_out():
    bank = random_bank(3)
    weights = torch.tensor([1.0, 0.0, 3.0])
    mean, of_two = bank.mean(weights), bank.rows([0, 2]).mean(weights[[0, 2]])
    for name in SHAPES:
        torch.testing.assert_close(mean[name], of_two[name], rtol=1e-12, atol=0)


def test_weights_that_sum_to_zero_are_an_error():
    with pytest.raises(ValueError, match="sum to 0"):
        random_bank(2).mean(torch.zeros(2))
