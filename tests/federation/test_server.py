"""The server's round against the textbook."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from updates import update_by

from fedloom.client.optimisers import adam, sgd
from fedloom.errors import UserError
from fedloom.federation.aggregate import aggregate, collect
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.algorithm import SENT, Algorithm
from fedloom.federation.server import Diverged, federated_round, initial_state, sample_clients
from fedloom.runtimes.gathering import collect_over_ranks
from fedloom.runtimes.group import Alone

START = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.zeros(2, 2, dtype=torch.float64)}


def update(client, shift, examples=2, loss=1.0):
    return update_by(client, {name: torch.full_like(t, shift) for name, t in START.items()}, examples, loss)


def returning(*updates):
    return lambda round_, clients, adapter, frozen, rule: list(updates)


def test_sgd_at_the_clients_rate_is_plain_averaging_of_models():
    updates = [update(0, 0.5, examples=2), update(3, -1.0, examples=6)]
    state = initial_state(START, Algorithm(0.1))
    after, report = federated_round(state, [0, 3], returning(*updates), Algorithm(0.1))
    for name in START:
        mean = (2 * updates[0].payload[name] + 6 * updates[1].payload[name]) / 8
        torch.testing.assert_close(after.adapter[name], START[name] + mean)
    assert after.round == 1 and report.clients == [0, 3]


def test_fedadam_is_adamw_on_the_mean_pseudo_gradient():
    algorithm = Algorithm(0.1, adam(0.01, weight_decay=0.01))
    state = initial_state(START, algorithm)
    reference = {name: torch.nn.Parameter(t.clone()) for name, t in START.items()}
    optimiser = torch.optim.AdamW(reference.values(), lr=0.01, weight_decay=0.01)
    for shift in (0.5, -0.2, 0.1):
        before = state.adapter

        def train(round_, clients, adapter, frozen, rule, shift=shift):
            return [update(k, s, examples=1) for k, s in enumerate((shift, 3 * shift))]

        state, _ = federated_round(state, [0, 1], train, algorithm)
        for p in reference.values():
            p.grad = torch.full_like(p, -2 * shift / 0.1)
        optimiser.step()
        assert any((state.adapter[n] - before[n]).abs().max() > 0 for n in before)
    for name, p in reference.items():
        torch.testing.assert_close(state.adapter[name], p.detach())


def test_an_aggregator_sees_who_sent_a_change_and_what_each_says_of_its_round():
    """In the order of the clients, of those whose update counts; q-FedAvg weighs by the loss, for one."""
    seen = []

    def by_loss(changes):
        seen.append(changes)
        share = changes.statistics["loss"] / changes.statistics["loss"].sum()
        return {name: torch.einsum("k,k...->...", share, t) for name, t in changes.deltas.tensors.items()}

    shift = {name: torch.ones_like(t) for name, t in START.items()}
    updates = [
        update_by(4, shift, examples=2, loss=1.0, steps=3),
        update_by(5, shift, loss=math.nan),
        update_by(7, {name: -t for name, t in shift.items()}, examples=6, loss=3.0, steps=1),
    ]
    algorithm = Algorithm(0.1, aggregator=by_loss)
    after, _ = federated_round(initial_state(START, algorithm), [4, 5, 7], returning(*updates), algorithm)
    torch.testing.assert_close(after.adapter["a"], START["a"] - 0.5)  # a quarter of 1, three of -1
    (changes,) = seen
    assert list(changes.senders) == [4, 7]
    assert {name: t.tolist() for name, t in changes.statistics.items()} == {
        "examples": [2, 6],
        "loss": [1, 3],
        "steps": [3, 1],
        "tokens": [10, 10],
    }


def test_what_a_rule_sends_is_combined_with_the_same_statistics():
    """FedNova and SCAFFOLD, for one: variates are combined by what combines changes."""

    def by_steps(changes):
        share = changes.weights * changes.statistics["steps"]
        return {name: torch.einsum("k,k...->...", share, t) for name, t in changes.deltas.tensors.items()}

    zeros = {name: torch.zeros_like(t) for name, t in START.items()}
    sent = [{f"{SENT}{name}": torch.full_like(t, 1.0 + k) for name, t in START.items()} for k in range(2)]
    updates = [update_by(k, zeros | sent[k], steps=1 + 2 * k) for k in range(2)]
    result = aggregate(START, updates, Algorithm(0.1, aggregator=by_steps))
    torch.testing.assert_close(result.sent["a"], torch.full_like(START["a"], (1 * 1 + 2 * 3) / 2))


def test_bytes_down_are_those_of_every_sampled_client_and_bytes_up_of_what_came():
    _, report = federated_round(
        initial_state(START, Algorithm(1.0)), [4, 7, 9], returning(update(4, 1.0)), Algorithm(1.0)
    )
    # Of three that were asked, one has answered.
    assert report.bytes_down == 3 * report.bytes_up == 3 * 6 * 8


@pytest.mark.parametrize("bad", [update(1, math.nan), update(1, math.inf), update(1, 0.5, loss=math.nan)])
def test_a_client_that_is_not_finite_does_not_count(bad):
    good = update(0, 0.25)
    state = initial_state(START, Algorithm(1.0))
    after, report = federated_round(state, [0, 1], returning(good, bad), Algorithm(1.0))
    assert report.left_out == [1] and [u.client for u in report.updates] == [0]
    torch.testing.assert_close(after.adapter["a"], START["a"] + 0.25)


def test_when_nobody_counts_the_round_says_so():
    with pytest.raises(Diverged, match="round 1"):
        federated_round(
            initial_state(START, Algorithm(1.0)), [1], returning(update(1, math.nan)), Algorithm(1.0)
        )


@pytest.mark.parametrize("optimiser", [sgd(0.1), adam(0.1)])
@pytest.mark.parametrize("shift", [1e154, -1e300, 1.7e308])
def test_a_client_too_large_for_the_servers_step_does_not_count(optimiser, shift):
    algorithm = Algorithm(0.1, optimiser)
    state = initial_state(START, algorithm)
    after, report = federated_round(state, [0, 1], returning(update(0, 0.25), update(1, shift)), algorithm)
    alone, _ = federated_round(state, [0], returning(update(0, 0.25)), algorithm)
    assert report.left_out == [1]
    for name in START:
        torch.testing.assert_close(after.adapter[name], alone.adapter[name])


def test_a_step_that_is_not_finite_is_not_taken_and_names_the_largest_update():
    updates = returning(update(0, 0.25), update(4, 1e150), update(5, -1e149))
    with pytest.raises(
        Diverged, match=r"round 1: .* not finite; the largest update was that of client 5, of norm 2.*e\+150"
    ):
        algorithm = Algorithm(0.1, sgd(1e308))
        federated_round(initial_state(START, algorithm), [0, 4, 5], updates, algorithm)


@given(shifts=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), examples=st.integers(1, 9))
def test_equal_clients_keep_the_mean(shifts, examples):
    updates = [update(k, shift, examples) for k, shift in enumerate(shifts)]
    gradient = aggregate(START, updates, Algorithm(0.5)).pseudo_gradient
    expected = torch.full((2,), -sum(shifts) / len(shifts) / 0.5, dtype=torch.float64)
    torch.testing.assert_close(gradient["a"], expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 99), round_=st.integers(0, 99), clients=st.integers(1, 30), data=st.data())
def test_clients_are_sampled_without_repetition_by_seed_and_round(seed, round_, clients, data):
    per_round = data.draw(st.integers(1, clients))
    chosen = sample_clients(seed, round_, clients, per_round)
    assert chosen == sorted(set(chosen)) == sample_clients(seed, round_, clients, per_round)
    assert len(chosen) == per_round and set(chosen) <= set(range(clients))


def test_every_client_has_its_turn():
    seen = {client for round_ in range(200) for client in sample_clients(1, round_, 20, 2)}
    assert seen == set(range(20))


class TwoRanks(Alone):
    """The first of two ranks, of which the other trained another layer."""

    size = 2

    def gather(self, value):
        return [value, [name.replace("1", "2") for name in value]]


@pytest.mark.parametrize("aggregator", [weighted_mean, median()])
def test_ranks_that_chose_different_layers_are_told_whatever_aggregates(aggregator):
    algorithm = Algorithm(client_lr=1.0, aggregator=aggregator)
    here = collect({"layer 1": torch.zeros(2)}, [update_by(0, {"layer 1": torch.ones(2)})], algorithm)
    with pytest.raises(UserError, match="selected different layers"):
        collect_over_ranks(TwoRanks(), here)
