"""The round of peers: against FedAvg, against being alone, and what mixing keeps."""

import math
from dataclasses import replace

import pytest
import torch
from graph_rounds import PEERS, SHAPES, alone, going, graph, random_bank, ring, state_of, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import update_by

from fedloom.client.optimisers import adam
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.peers import mix, peer_round
from fedloom.federation.server import federated_round, initial_state
from fedloom.model.bank import AdapterBank


def test_with_the_complete_graph_a_round_is_one_of_fedavg():
    row = random_bank(1).row(0)
    shifts = [0.5, -0.25, 0.125, 1.0, 0.0]
    start = AdapterBank.repeat(row, PEERS)
    peers, _ = peer_round(state_of(start), going(shifts), uniform(), set(SHAPES))

    def clients(round_, chosen, trained, frozen, rule):
        return [update_by(k, {n: torch.full_like(t, shifts[k]) for n, t in trained.items()}) for k in chosen]

    fedavg, _ = federated_round(initial_state(row, Algorithm(0.1)), range(PEERS), clients, Algorithm(0.1))
    for name, t in fedavg.adapter.items():
        for peer in range(PEERS):
            torch.testing.assert_close(peers.bank.tensors[name][peer], t)


def test_with_the_identity_every_peer_is_alone():
    bank = random_bank()
    after, report = peer_round(state_of(bank), going([1.0] * PEERS), alone(), set(SHAPES))
    for name, t in bank.tensors.items():
        assert torch.equal(after.bank.tensors[name], t + 1.0)
    assert report.bytes_sent == 0 and after.round == 1


def test_only_what_is_mixed_is_averaged_and_sent():
    bank = random_bank()
    mixed = {"q.lora_A.weight", "q.lora_B.weight"}
    after, report = peer_round(state_of(bank), going([0.0] * PEERS), ring(), mixed)
    assert torch.equal(after.bank.tensors["score.weight"], bank.tensors["score.weight"])
    assert not torch.equal(after.bank.tensors["q.lora_A.weight"], bank.tensors["q.lora_A.weight"])
    assert report.bytes_sent == PEERS * 2 * (2 * 6 + 4 * 2) * 8  # two neighbours each


def test_frozen_a_makes_averaging_factors_averaging_products_and_training_a_does_not():
    bank, W = random_bank(), torch.from_numpy(ring().dense())
    A, B = bank.tensors["q.lora_A.weight"], bank.tensors["q.lora_B.weight"]
    after = mix(bank, W, set(SHAPES)).tensors
    one_A = A[0].expand_as(A)
    products_of_means = after["q.lora_B.weight"] @ one_A
    means_of_products = torch.einsum("ij,jkl->ikl", W, B @ one_A)
    torch.testing.assert_close(products_of_means, means_of_products, rtol=1e-12, atol=1e-12)

    products_of_means = after["q.lora_B.weight"] @ after["q.lora_A.weight"]
    means_of_products = torch.einsum("ij,jkl->ikl", W, B @ A)
    apart = (products_of_means - means_of_products).norm() / means_of_products.norm()
    assert apart > 0.3  # with random factors the error is as large as the thing itself


@settings(max_examples=30)
@given(peers=st.integers(2, 12), seed=st.integers(0, 99))
def test_mixing_keeps_the_mean_of_all_peers_and_brings_them_closer(peers, seed):
    bank = random_bank(peers, seed)
    after = mix(bank, (ring(peers) if peers > 2 else uniform(peers)).sparse(), set(SHAPES))
    for name, t in bank.tensors.items():
        torch.testing.assert_close(after.tensors[name].mean(0), t.mean(0), rtol=1e-12, atol=1e-12)
        assert after.tensors[name].var(0).sum() <= t.var(0).sum() + 1e-12


def test_a_sparse_matrix_mixes_as_a_dense_one():
    bank, dense = random_bank(), torch.from_numpy(ring().dense())
    ours = mix(bank, ring().sparse(), set(SHAPES))
    for name, t in mix(bank, dense, set(SHAPES)).tensors.items():
        torch.testing.assert_close(ours.tensors[name], t, rtol=1e-14, atol=1e-14)


def test_a_peer_that_sits_out_neither_trains_nor_mixes():
    bank = random_bank()
    without_2 = graph([(0, 1), (3, 4), (0, 4)], 1 / 3, out=[2])
    after, report = peer_round(state_of(bank), going([1.0] * PEERS), without_2, set(SHAPES))
    for name, t in bank.tensors.items():
        assert torch.equal(after.bank.tensors[name][2], t[2])
        assert not torch.equal(after.bank.tensors[name][0], t[0])
    assert math.isnan(report.trained.loss[2]) and report.left_out == []
    assert report.bytes_sent == 6 * sum(math.prod(shape) * 8 for shape in SHAPES.values())


def test_a_matrix_that_would_move_the_mean_is_refused():
    with pytest.raises(ValueError, match=r"at least 0|sum to 1"):
        peer_round(state_of(random_bank()), going([1.0] * PEERS), graph([(0, 1)], 1.5), set(SHAPES))


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_a_peer_whose_update_is_not_finite_goes_on_from_where_it_was(spoil):
    optimiser = adam(0.1)
    bank = random_bank()
    state = state_of(bank, optimiser)
    shifts = [1.0, spoil, 1.0, 1.0, 1.0]
    after, report = peer_round(state, going(shifts), alone(), set(SHAPES))
    assert report.left_out == [1]
    for name, t in bank.tensors.items():
        assert torch.equal(after.bank.tensors[name][1], t[1])
        assert torch.equal(after.bank.tensors[name][0], t[0] + 1.0)


@pytest.mark.parametrize("number", [1.7e308, -1e154])
def test_a_peer_with_a_row_too_large_ruins_nobody(number):
    start = random_bank()
    peers, report = peer_round(state_of(start), going([0.0, number, 0.0, 0.0, 0.0]), uniform(), set(SHAPES))
    assert report.left_out == [1]
    for name, t in peers.bank.tensors.items():
        torch.testing.assert_close(t, start.tensors[name].mean(0).expand_as(t))


def test_moments_that_are_not_finite_count_as_well():
    start = random_bank()

    def train(state, who):
        trained = going([0.1] * PEERS)(state, who)
        moments = {
            name: t + torch.tensor([0.0, math.inf, 0, 0, 0]).view(-1, *[1] * (t.ndim - 1))
            for name, t in trained.optimiser.items()
        }
        return replace(trained, optimiser=moments)

    before = state_of(start, adam(0.1))
    before = replace(before, optimiser={n: t for n, t in before.optimiser.items() if n.startswith("second")})
    peers, report = peer_round(before, train, alone(), set(SHAPES))
    assert report.left_out == [1]
    assert all(t.isfinite().all() for t in peers.optimiser.values())


def test_a_loss_that_is_not_finite_counts_as_well():
    _, report = peer_round(
        state_of(random_bank()),
        going([1.0] * PEERS, loss=(3, math.nan)),
        ring(),
        set(SHAPES),
    )
    assert report.left_out == [3]
