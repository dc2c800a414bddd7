"""Stacked SGD, Adam and clipping equal torch's own, client by client, whoever is active when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.client.optimisers import adam, clip, sgd
from fedloom.model.bank import AdapterBank

SHAPES = {"A": (3, 2), "B": (4,)}
CLIENTS = 3


def random_bank(seed):
    generator = torch.Generator().manual_seed(seed)
    return AdapterBank(
        {n: torch.randn(CLIENTS, *s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    )


OPTIMISERS = {
    "sgd": (sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "adam": (adam(0.1), lambda p: torch.optim.Adam(p, 0.1)),
    "adamw": (
        adam(0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3),
    ),
}
turns = st.lists(st.lists(st.booleans(), min_size=CLIENTS, max_size=CLIENTS), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", OPTIMISERS)
@settings(max_examples=20, deadline=None)
@given(turns=turns)
def test_equals_torch_for_each_client_whoever_is_active_when(kind, turns):
    stacked, make_alone = OPTIMISERS[kind]
    bank = random_bank(0)
    alone = [{n: t.clone().requires_grad_() for n, t in bank.row(k).items()} for k in range(CLIENTS)]
    theirs = [make_alone(list(row.values())) for row in alone]
    state = stacked.init(bank)
    for turn, active in enumerate(turns):
        gradients = random_bank(turn + 1)
        bank, state = stacked.step(bank, gradients, state, torch.tensor(active))
        for k in range(CLIENTS):
            if active[k]:
                for name, p in alone[k].items():
                    p.grad = gradients.row(k)[name].clone()
                theirs[k].step()
    for k in range(CLIENTS):
        for name, t in bank.row(k).items():
            torch.testing.assert_close(t, alone[k][name].detach(), rtol=1e-11, atol=1e-12)
    for counted in (t for key, t in state.items() if key.startswith("steps.")):
        assert counted.tolist() == [sum(active[k] for active in turns) for k in range(CLIENTS)]


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_an_inactive_client_keeps_everything_bit_for_bit(kind, bad):
    stacked, _ = OPTIMISERS[kind]
    bank = random_bank(0)
    state = stacked.init(bank)
    bank, state = stacked.step(bank, random_bank(1), state, torch.tensor([True, True, True]))
    gradients = random_bank(2)
    for t in gradients.tensors.values():
        t[1] = bad
    after, state_after = stacked.step(bank, gradients, state, torch.tensor([True, False, True]))
    for name in SHAPES:
        assert torch.equal(after.tensors[name][1], bank.tensors[name][1])
        assert not torch.equal(after.tensors[name][0], bank.tensors[name][0])
        assert after.tensors[name][[0, 2]].isfinite().all()
    for name, t in state_after.items():
        assert torch.equal(t[1], state[name][1])
        assert not torch.equal(t[0], state[name][0])


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_step_leaves_what_it_was_given_as_it_was(kind):
    stacked, _ = OPTIMISERS[kind]
    bank, gradients = random_bank(0), random_bank(1)
    state = stacked.init(bank)
    stacked.step(bank, gradients, state, torch.tensor([True, True, True]))
    for name in SHAPES:
        assert torch.equal(bank.tensors[name], random_bank(0).tensors[name])
        assert torch.equal(gradients.tensors[name], random_bank(1).tensors[name])
    assert all(not t.any() for t in state.values())


def test_adams_state_slices_and_stacks_as_a_bank_does():
    optimiser, _ = OPTIMISERS["adam"]
    bank = random_bank(0)
    everyone = torch.tensor([True, True, True])
    bank, state = optimiser.step(bank, random_bank(1), optimiser.init(bank), everyone)
    together, _ = optimiser.step(bank, random_bank(2), state, everyone)
    order = [2, 0]
    some_state = {name: t[order] for name, t in state.items()}
    some, _ = optimiser.step(bank.rows(order), random_bank(2).rows(order), some_state, everyone[:2])
    for name in SHAPES:
        assert torch.equal(some.tensors[name], together.tensors[name][order])


@settings(max_examples=30, deadline=None)
@given(max_norm=st.floats(0.01, 20), seed=st.integers(0, 100))
def test_clipping_equals_torchs_for_each_client(max_norm, seed):
    gradients = random_bank(seed).map(
        lambda t: t * torch.tensor([0.01, 1.0, 10.0]).view(-1, *[1] * (t.ndim - 1))
    )
    clipped = clip(gradients, max_norm)
    for k in range(CLIENTS):
        leaves = [torch.zeros_like(t, requires_grad=True) for t in gradients.row(k).values()]
        for leaf, g in zip(leaves, gradients.row(k).values(), strict=True):
            leaf.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        for leaf, g in zip(leaves, clipped.row(k).values(), strict=True):
            torch.testing.assert_close(g, leaf.grad, rtol=1e-12, atol=1e-15)


def test_clipping_at_zero_is_no_clipping():
    gradients = random_bank(0)
    assert clip(gradients, 0.0) is gradients


def test_a_client_whose_gradient_is_not_finite_spoils_no_other():
    gradients = random_bank(0)
    gradients.tensors["A"][1] = torch.nan
    clipped, alone = clip(gradients, 0.5), clip(gradients.rows([0, 2]), 0.5)
    for name in SHAPES:
        assert torch.equal(clipped.tensors[name][[0, 2]], alone.tensors[name])
    assert clipped.norms()[[0, 2]].tolist() == pytest.approx([0.5, 0.5], rel=1e-5)
