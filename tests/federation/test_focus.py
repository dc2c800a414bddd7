"""The round of gradient priority: what is trained, what is sent, and what becomes of the rest."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from updates import update_by

from fedloom.client.optimisers import adam, sgd
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.focus import Focus, focused_round
from fedloom.federation.priority import Projection
from fedloom.federation.server import Diverged, federated_round, initial_state
from fedloom.model.bank import bytes_of

LAYERS = 5
RANK, WIDTH = 2, 4


def names(layer):
    return f"layers.{layer}.a", f"layers.{layer}.b"


def number(name):
    """The layer of a parameter; of one that is in no layer, 0."""
    return int(name.split(".")[1]) if name.startswith("layers.") else 0


def adapter(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for layer in range(LAYERS)
        for name, shape in zip(names(layer), [(RANK, WIDTH), (WIDTH, RANK)], strict=True)
    }


START = adapter()


def focus(**options):
    layers = {i: [Projection(*names(i), 2.0, lambda: torch.ones(WIDTH, WIDTH))] for i in range(LAYERS)}
    defaults = {"highest": 2, "lowest": 1, "policy": "priority", "grad_eval": "l2", "server_grad_scale": 0.1}
    return Focus(layers, **(defaults | options), seed=3)


def server_gradient(round_, row):
    """Grows with the layer's number, so that priority takes the last layers and the first."""
    return {name: (1 + number(name)) * torch.ones_like(t) for name, t in row.items()}, 1.5


def never(round_, row):
    raise AssertionError("nothing needs the server's gradient here")


class Clients:
    """Everybody goes the same way from what it was given, and remembers what that was."""

    def __init__(self):
        self.asked = []

    def __call__(self, round_, clients, trained, frozen, rule):
        self.asked.append((set(trained), set(frozen)))
        return [
            update_by(k, {n: torch.full_like(t, -0.1 * (k + 1)) for n, t in trained.items()}, 2)
            for k in clients
        ]


def play(state, optimiser, *, gradient=server_gradient, clients=(0, 3), **options):
    train = Clients()
    after, report, told = focused_round(
        state, clients, train, gradient, focus(**options), Algorithm(0.1, optimiser)
    )
    return after, report, told, train


def moved(before, after):
    """The layers of which anything moved."""
    return {number(n) for n in before if not torch.equal(before[n], after[n])}


def test_clients_train_the_highest_and_the_lowest_layers_and_use_the_others():
    _, report, told, train = play(initial_state(START, Algorithm(0.1)), sgd(0.1))
    assert told.selected == (0, 3, 4)
    assert train.asked == [({n for i in (0, 3, 4) for n in names(i)}, {n for i in (1, 2) for n in names(i)})]
    assert told.loss == 1.5 and list(told.scores) == list(range(LAYERS))
    assert told.scores == {i: pytest.approx((1 + i) * math.sqrt(RANK * WIDTH)) for i in range(LAYERS)}
    assert [update.client for update in report.updates] == [0, 3]


def test_bytes_are_those_of_the_selected_layers_and_a_bit_per_layer():
    state = initial_state(START, Algorithm(0.1))
    _, report, _, _ = play(state, sgd(0.1), highest=1, lowest=1)
    _, whole = federated_round(state, [0, 3], Clients(), Algorithm(0.1))
    assert report.bytes_up * LAYERS == whole.bytes_up * 2
    assert report.bytes_down == report.bytes_up + 2 * 1  # one byte has room for five layers, two clients


def test_elsewhere_the_servers_own_gradient_moves_the_adapter():
    after, *_ = play(initial_state(START, Algorithm(0.1, sgd(0.5))), sgd(0.5), server_grad_scale=0.2)
    gradient, _ = server_gradient(0, START)
    for layer in (1, 2):
        for name in names(layer):
            torch.testing.assert_close(after.adapter[name], START[name] - 0.5 * 0.2 * gradient[name])
    for layer in (0, 3, 4):  # the mean of two clients that went 0.1 and 0.4 down
        for name in names(layer):
            torch.testing.assert_close(after.adapter[name], START[name] - 0.5 * 0.25 / 0.1)


@pytest.mark.parametrize("optimiser", [sgd(0.1), adam(0.1, weight_decay=0.01)], ids=["SGD", "AdamW"])
def test_all_layers_make_it_the_round_without_focus(optimiser):
    ours = theirs = initial_state(START, Algorithm(0.1, optimiser))
    for _ in range(3):
        ours, report, told, _ = play(ours, optimiser, highest=LAYERS, lowest=0, server_grad_scale=7.0)
        theirs, plain = federated_round(theirs, [0, 3], Clients(), Algorithm(0.1, optimiser))
        assert told.selected == tuple(range(LAYERS)) and report.bytes_up == plain.bytes_up
    for name in START:
        assert torch.equal(ours.adapter[name], theirs.adapter[name])
    for key in theirs.optimiser:
        assert torch.equal(ours.optimiser[key], theirs.optimiser[key])


def test_no_layer_and_scale_1_is_training_on_the_servers_gradient_alone():
    optimiser = adam(0.1, weight_decay=0.01)
    state = initial_state(START, Algorithm(0.1, optimiser))
    reference = {name: torch.nn.Parameter(t.clone()) for name, t in START.items()}
    alone = torch.optim.AdamW(reference.values(), lr=0.1, weight_decay=0.01)
    for round_ in range(3):
        state, report, told, train = play(state, optimiser, highest=0, lowest=0, server_grad_scale=1.0)
        assert told.selected == () and report.clients == [] and train.asked == []
        assert report.bytes_up == report.bytes_down == 0
        gradient, _ = server_gradient(round_, START)
        for name, p in reference.items():
            p.grad = gradient[name].clone()
        alone.step()
    for name, p in reference.items():
        torch.testing.assert_close(state.adapter[name], p.detach())


def test_at_scale_0_layers_that_are_not_selected_rest_with_moments_and_step_count():
    optimiser = adam(0.1, weight_decay=0.01)
    state = initial_state(START, Algorithm(0.1, optimiser))
    state, *_ = play(state, optimiser, policy="all")
    after, *_ = play(state, optimiser, server_grad_scale=0.0)
    assert moved(state.adapter, after.adapter) == {0, 3, 4}
    for layer in range(LAYERS):
        for name in names(layer):
            resting = layer in (1, 2)
            assert int(after.optimiser[f"steps.{name}"]) == (1 if resting else 2)
            for moment in ("first", "second"):
                key = f"{moment}.{name}"
                assert torch.equal(after.optimiser[key], state.optimiser[key]) == resting


def test_above_0_every_layer_takes_an_optimiser_step_every_round():
    optimiser = adam(0.1)
    after, *_ = play(initial_state(START, Algorithm(0.1, optimiser)), optimiser)
    assert moved(START, after.adapter) == set(range(LAYERS))
    assert all(int(t) == 1 for key, t in after.optimiser.items() if key.startswith("steps."))


@pytest.mark.parametrize(("policy", "scale"), [("all", 0.1), ("last", 0.0), ("first", 0.0), ("random", 0.0)])
def test_the_servers_gradient_is_computed_only_where_it_is_used(policy, scale):
    _, report, told, _ = play(
        initial_state(START, Algorithm(0.1)),
        sgd(0.1),
        policy=policy,
        server_grad_scale=scale,
        gradient=never,
    )
    assert told.scores == {} and told.loss is None
    assert len(told.selected) == (LAYERS if policy == "all" else 3)
    assert report.bytes_up == 2 * bytes_of({n: START[n] for i in told.selected for n in names(i)})


@pytest.mark.parametrize("policy", ["last", "first", "random"])
def test_baselines_score_too_where_the_gradient_is_there_anyway(policy):
    _, _, told, _ = play(initial_state(START, Algorithm(0.1)), sgd(0.1), policy=policy)
    assert len(told.scores) == LAYERS and len(told.selected) == 3


def test_parameters_outside_the_layers_are_always_trained_and_sent():
    start = START | {"score": torch.ones(3, dtype=torch.float64)}
    state = initial_state(start, Algorithm(0.1))
    _, report, _, train = play(state, sgd(0.1), highest=0, lowest=1)
    trained, frozen = train.asked[0]
    assert "score" in trained and "score" not in frozen
    assert report.bytes_up == 2 * (bytes_of(start) - bytes_of(START) + bytes_of(START) // LAYERS)


def test_a_server_gradient_that_is_not_finite_ends_the_run():
    def broken(round_, row):
        return {name: t * math.nan for name, t in row.items()}, math.nan

    with pytest.raises(Diverged, match="round 1: the gradient on the server's own data"):
        play(initial_state(START, Algorithm(0.1)), sgd(0.1), gradient=broken)


@given(highest=st.integers(0, 7), lowest=st.integers(0, 7), scale=st.sampled_from([0.0, 0.3]))
def test_what_is_sent_and_what_is_not_make_the_whole_adapter(highest, lowest, scale):
    after, report, told, train = play(
        initial_state(START, Algorithm(0.1)),
        sgd(0.1),
        highest=highest,
        lowest=lowest,
        server_grad_scale=scale,
    )
    assert len(told.selected) == min(highest + lowest, LAYERS)
    for trained, frozen in train.asked:
        assert trained | frozen == set(START) and not trained & frozen
    assert moved(START, after.adapter) == (set(range(LAYERS)) if scale else set(told.selected))
    assert report.bytes_up * LAYERS == 2 * bytes_of(START) * len(told.selected)
