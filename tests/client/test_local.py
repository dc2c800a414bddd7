"""Local training: each client as if it were alone, in as many passes as the token budget makes."""

import random

import numpy as np
import pytest
import torch
from engine import BEGINNING, apart, clients_data, make_stacked, moved, random_sequence, start_bank, steps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig
from tiny import tiny_llama, tiny_roberta

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import adam, sgd
from fedloom.client.rules.proximal import proximal
from fedloom.client.steps import batch_tokens, mean_step, passes
from fedloom.client.work import Schedule, plan_work
from fedloom.data.encode import Tokens
from fedloom.model.bank import AdapterBank
from fedloom.model.layout import Batch, Layout, labels_of
from fedloom.model.packing import build_pack

LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
DATA = clients_data((3, 1, 2))

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.fixture
def model():
    return make_stacked(tiny_llama(num_hidden_layers=1).double(), LORA, DATA)


def work_of(model, data=DATA):
    return [steps_of(k, client, model.layout) for k, client in enumerate(data)]


def train(model, data=DATA, start=None, state=None, **rules):
    rules = LocalRules(**{"optimiser": sgd(0.2), **rules})
    start = start_bank(model, len(data)) if start is None else start
    return train_locally(model, start, work_of(model, data), rules, state)


def rows_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Losses and gradients


def slow_training(model, client, steps, lr, mu=0.0):
    """One client, one parameter update after the other, all by autograd."""
    start = start_bank(model, 1).tensors
    weights, losses = dict(start), []
    for step in steps:
        leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
        loss = model.losses(leaves, build_pack([step], model.layout)).loss[0]
        far = sum((leaves[name] - start[name]).square().sum() for name in leaves)
        gradients = torch.autograd.grad(loss + mu / 2 * far, list(leaves.values()))
        weights = {n: t - lr * g for (n, t), g in zip(weights.items(), gradients, strict=True)}
        losses.append(float(loss.detach()))
    return {name: t[0] for name, t in weights.items()}, losses


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_fedprox_descends_the_loss_plus_half_mu_times_the_squared_distance(model, mu):
    together = train(model, rule=proximal(mu))
    for k, steps in enumerate(work_of(model)):
        alone, losses = slow_training(model, k, steps, lr=0.2, mu=mu)
        assert moved(alone, model.initial)
        assert apart(together.bank.row(k), alone) <= 1e-12
        batches = [len(step) for step in steps]
        mean = sum(x * n for x, n in zip(losses, batches, strict=True)) / sum(batches)
        assert float(together.loss[k]) == pytest.approx(mean, rel=1e-10), "the proximal term is no loss"


def test_fedprox_at_zero_is_fedavg_exactly_and_beyond_zero_it_is_not(model):
    fedavg, at_zero, fedprox = (
        train(model),
        train(model, rule=proximal(0.0)),
        train(model, rule=proximal(0.5)),
    )
    for k in range(3):
        assert rows_equal(at_zero.bank.row(k), fedavg.bank.row(k))
    # A first step starts at the anchor, where the term is flat: client 1 takes only one.
    far = [apart(fedprox.bank.row(k), fedavg.bank.row(k)) for k in range(3)]
    assert far[1] == 0 and far[0] > 1e-6 and far[2] > 1e-6


@pytest.mark.parametrize("config", [LORA, PROMPT], ids=["lora", "prompt-tuning"])
def test_no_gradient_crosses_clients(config):
    model = make_stacked(tiny_llama(num_hidden_layers=1).double(), config, DATA)
    leaves = {name: t.requires_grad_() for name, t in start_bank(model, 3).tensors.items()}
    pack = build_pack([steps[0] for steps in work_of(model)], model.layout)
    loss = model.losses(leaves, pack).loss
    for k in range(3):
        gradients = torch.autograd.grad(loss[k], list(leaves.values()), retain_graph=True)
        own = sum(float(g[k].abs().sum()) for g in gradients)
        of_others = sum(float(g[j].abs().sum()) for g in gradients for j in range(3) if j != k)
        assert own > 0 and of_others == 0.0


@pytest.mark.parametrize("config", [LORA, PROMPT], ids=["lora", "prompt-tuning"])
def test_a_clients_result_does_not_depend_on_its_neighbours_data(config):
    model = make_stacked(tiny_llama(num_hidden_layers=1).double(), config, DATA)
    other = clients_data((3, 1, 2), seed=9)
    mixed = train(model, [DATA[0], other[1], DATA[2]])
    plain = train(model)
    assert apart(mixed.bank.row(1), plain.bank.row(1)) > 1e-4
    for k in (0, 2):
        assert moved(plain.bank.row(k), model.initial)
        assert apart(mixed.bank.row(k), plain.bank.row(k)) <= 1e-12


def test_clients_start_each_from_their_own_row(model):
    start = start_bank(model, 3).map(
        lambda t: t + 0.1 * torch.arange(3, dtype=t.dtype).view(-1, *[1] * (t.ndim - 1))
    )
    together = train(model, start=start).bank
    for k in range(3):
        only = [DATA[k]]
        alone = train(model, only, start=start.rows([k])).bank
        assert apart(together.row(k), alone.row(0)) <= 1e-12
        assert k == 0 or apart(together.row(k), train(model).bank.row(k)) > 1e-3


def test_a_step_over_several_batches(model):
    """Accumulated batches stand for one larger batch, or for the mean of their own gradients."""
    rng, start = random.Random(4), start_bank(model, 1)
    short, long = (Tokens([*BEGINNING, *(rng.randrange(10, 90) for _ in range(n))], 4, 0) for n in (4, 20))

    def step(batches, mean_over="tokens", **rules):
        work = [[mean_step(batches, model.layout, [(0, 0, i) for i in range(len(batches))], mean_over)]]
        done = train_locally(model, start, work, LocalRules(sgd(0.2), **rules))
        return done.bank.row(0), float(done.loss[0])

    accumulated, loss = step([[short], [long]])
    wide, of_wide = step([[short, long]])
    assert apart(accumulated, wide) <= 1e-12 and loss == pytest.approx(of_wide, rel=1e-12)
    (first, loss_a), (second, loss_b) = step([[short]]), step([[long]])
    mean, of_means = step([[short], [long]], "batches")
    assert apart(mean, {name: (first[name] + second[name]) / 2 for name in first}) <= 1e-12
    assert of_means == pytest.approx((loss_a + loss_b) / 2, rel=1e-12)
    assert apart(mean, wide) > 1e-4
    total, of_total = step([[short], [long]], "batches", accumulate="sum")
    origin = start.row(0)
    assert apart(total, {name: first[name] + second[name] - origin[name] for name in first}) <= 1e-12
    assert of_total == of_means


# A part of the adapter


def test_a_part_trains_as_it_would_with_the_rest_held_still_and_the_rest_is_only_used(model):
    whole = start_bank(model, 1).map(lambda t: t + 0.1).row(0)
    part = {name: t for name, t in whole.items() if "down_proj" in name}
    rest = {name: t for name, t in whole.items() if name not in part}
    bank = AdapterBank.repeat(part, len(DATA))
    ours = train_locally(model, bank, work_of(model), LocalRules(sgd(0.2)), frozen=rest).bank
    for k, steps in enumerate(work_of(model)):
        weights = dict(part)
        for step in steps:
            leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
            every = {name: t[None] for name, t in (leaves | rest).items()}
            loss = model.losses(every, build_pack([step], model.layout)).loss[0]
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            weights = {n: t - 0.2 * g for (n, t), g in zip(weights.items(), gradients, strict=True)}
        assert ours.tensors.keys() == part.keys()
        assert moved(ours.row(k), part) and apart(ours.row(k), weights) <= 1e-12


def test_backward_stops_at_the_lowest_layer_that_trains():
    model = make_stacked(tiny_llama(num_hidden_layers=3).double(), LORA, DATA)
    whole = start_bank(model, 1).row(0)
    top = {name: t for name, t in whole.items() if ".layers.2." in name}
    rest = {name: t for name, t in whole.items() if name not in top}
    tracked = []
    for layer in model.model.model.layers:
        layer.register_forward_hook(lambda module, args, out: tracked.append(out.requires_grad))
    train_locally(
        model,
        AdapterBank.repeat(top, 3),
        work_of(model),
        LocalRules(sgd(0.2), wave_tokens=10**6),
        frozen=rest,
    )
    assert tracked[:3] == [False, False, True]


# Clients without work, and state


def test_a_client_without_steps_keeps_its_row_and_has_no_loss(model):
    result = train(model, [DATA[0], [], DATA[2]], optimiser=adam(0.01))
    assert rows_equal(result.bank.row(1), start_bank(model, 1).row(0))
    assert result.loss.isnan().tolist() == [False, True, False]
    assert int(result.labels[1]) == 0 and all(
        t.tolist() == [3, 0, 2] for key, t in result.state.items() if key.startswith("steps.")
    )
    assert moved(result.bank.row(0), model.initial)


def test_nobody_with_steps_changes_nothing(model):
    result = train(model, [[], []])
    assert rows_equal(result.bank.tensors, start_bank(model, 2).tensors) and result.loss.isnan().all()


def test_a_client_whose_steps_have_run_out_stands_still(model):
    """Client 1 has one step, client 0 three: with and without the other's later steps, 1 ends the same."""
    longer = train(model, DATA, optimiser=adam(0.01))
    shorter = train(model, [client[:1] for client in DATA], optimiser=adam(0.01))
    assert rows_equal(longer.bank.row(1), shorter.bank.row(1))
    for name, t in longer.state.items():
        assert torch.equal(t[1], shorter.state[name][1])
    assert not rows_equal(longer.bank.row(0), shorter.bank.row(0))


def test_training_goes_on_from_a_state_as_if_it_had_never_stopped(model):
    at_once = train(model, optimiser=adam(0.01))
    first = train(model, [client[:1] for client in DATA], optimiser=adam(0.01))
    rest = train(model, [client[1:] for client in DATA], first.bank, first.state, optimiser=adam(0.01))
    for k in range(3):
        assert rows_equal(rest.bank.row(k), at_once.bank.row(k))
    fresh = train(model, [client[1:] for client in DATA], first.bank, optimiser=adam(0.01))
    assert apart(fresh.bank.row(0), at_once.bank.row(0)) > 1e-6, "the state made no difference"


def test_training_leaves_the_bank_it_started_from_as_it_was(model):
    start = start_bank(model, 3)
    train(model, start=start)
    assert rows_equal(start.tensors, start_bank(model, 3).tensors)


def test_counts_are_those_of_the_data(model):
    result = train(model)
    every = [[s for step in client for batch in step for s in batch] for client in DATA]
    assert result.labels.tolist() == [sum(labels_of(s, model.layout) for s in own) for own in every]
    assert (result.correct <= result.labels).all()
    packs = [build_pack([step], model.layout) for client in work_of(model) for step in client]
    assert int(torch.as_tensor(result.tokens).sum()) == sum(sum(pack.client_tokens) for pack in packs)


def test_correct_labels_are_counted_per_client():
    """A classifier that always says 1, and clients with known shares of ones."""
    base = tiny_roberta(num_labels=3, num_hidden_layers=1).double()
    model = make_stacked(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    start = start_bank(model, 2)
    start.tensors["base_model.model.classifier.out_proj.bias"][:, 1] = 1e3
    rng = random.Random(0)
    data = [
        [[[random_sequence(rng)._replace(label=label) for label in labels]]]
        for labels in ([1, 1, 0, 2], [1, 2, 2])
    ]
    result = train(model, data, start=start, optimiser=sgd(0.0))
    assert result.correct.tolist() == [2, 1] and result.labels.tolist() == [4, 3]


# Passes

batches_of_clients = st.lists(
    st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), max_size=3), min_size=1, max_size=5
)
layouts = st.builds(Layout, packed=st.booleans(), causal=st.just(True), virtual=st.sampled_from([0, 2]))


@settings(max_examples=100, deadline=None)
@given(lengths=batches_of_clients, layout=layouts, wave_tokens=st.integers(1, 60))
def test_passes_hold_every_batch_once_in_order_and_keep_to_the_budget(lengths, layout, wave_tokens):
    rng = random.Random(0)
    steps = [
        [
            Batch([random_sequence(rng, n + 4) for n in batch], 1.0, (0, k, i))
            for i, batch in enumerate(client)
        ]
        for k, client in enumerate(lengths)
    ]
    found = list(passes(steps, layout, wave_tokens))
    seen = [(first + i, batch) for first, clients in found for i, own in enumerate(clients) for batch in own]
    assert seen == [(k, batch) for k, step in enumerate(steps) for batch in step]
    for _, clients in found:
        assert clients[0] and clients[-1], "a pass begins and ends with a client that has a batch"
        cost = sum(batch_tokens(batch, layout) for own in clients for batch in own)
        assert cost <= wave_tokens or sum(map(len, clients)) == 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("virtual, prefix", [(0, 0), (2, 3)])
def test_a_batchs_tokens_are_those_it_puts_through_the_model(packed, virtual, prefix):
    layout = Layout(packed=packed, causal=True, virtual=virtual, prefix=prefix)
    rng = random.Random(0)
    batch = Batch([random_sequence(rng) for _ in range(3)], 1.0)
    assert batch_tokens(batch, layout) == build_pack([[batch]], layout).ids.numel()


def test_a_client_groups_its_batches_into_steps_of_the_mean_that_is_asked_for():
    layout, data = Layout(packed=True, causal=True), [s for step in DATA[0] for batch in step for s in batch]
    planned = {
        over: plan_work(
            data,
            np.arange(8),
            Schedule(batches=8, batch_size=1, accumulate=4, mean_over=over),
            layout,
            seed=1,
            client=0,
            round_=0,
            drawn=0,
        )
        for over in ("tokens", "batches")
    }
    for over, work in planned.items():
        assert [len(step) for step in work.steps] == [4, 4] and work.examples == 8
        sequences, keys = [batch.sequences for batch in work.steps[1]], [(0, 0, 1, i) for i in range(4)]
        assert work.steps[1] == mean_step(sequences, layout, keys, over)
    assert planned["tokens"].steps != planned["batches"].steps


@pytest.mark.parametrize("classify", [False, True])
def test_in_a_mean_step_every_label_weighs_the_same_or_every_batch(classify):
    layout, batches = Layout(packed=True, causal=True, classify=classify), DATA[0][0]
    labels = [sum(labels_of(s, layout) for s in sequences) for sequences in batches]
    by_token, by_batch = (mean_step(batches, layout, [(0,), (1,)], over) for over in ("tokens", "batches"))
    assert [batch.weight for batch in by_token] == [1 / sum(labels)] * 2
    assert [batch.weight * n for batch, n in zip(by_batch, labels, strict=True)] == pytest.approx([0.5, 0.5])
    assert [batch.key for batch in by_token] == [(0,), (1,)]
