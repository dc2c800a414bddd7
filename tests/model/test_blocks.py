"""All clients' own weights in one product: the loop's results, and 64 clients take as many calls as 4."""

import pytest
import torch
from engine import (
    apart,
    clients_data,
    hashed_dropout,
    make_stacked,
    moved,
    start_bank,
    steps_of,
    train_stacked,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_llama, tiny_roberta
from torch.profiler import ProfilerActivity, profile

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.model import blocks, dropout
from fedloom.model.adapters.lora import add_low_rank
from fedloom.model.packing import build_pack

CPU = torch.device("cpu")
D_IN, D_OUT, RANK = 6, 5, 2


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A switch: blocks wherever there are clients, as on a GPU where there are several."""
    return lambda: monkeypatch.setattr(blocks, "pay", lambda device, lengths: any(lengths))


def tensors(lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens, clients = sum(lengths), len(lengths)
    shapes = (tokens, D_OUT), (tokens, D_IN), (clients, RANK, D_IN), (clients, D_OUT, RANK)
    y, x, A, B = (torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)
    keep = (torch.rand(tokens, D_IN, generator=generator) > 0.3).to(dtype) / 0.7
    return y, x, A, B, keep


def both_ways(lengths, inputs, keep, wanted="yxAB", length_from=RANK):
    """Output and gradients, client by client and in blocks."""
    upstream = torch.randn(sum(lengths), D_OUT, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    for plan in (None, blocks.plan_blocks(lengths, length_from, CPU)):
        y, x, A, B = (
            t.detach().requires_grad_(name in wanted) for name, t in zip("yxAB", inputs, strict=True)
        )
        out = add_low_rank(y.clone(), x, A, B, 1.5, lengths, keep, None, plan)
        leaves = [t for t in (y, x, A, B) if t.requires_grad]
        yield [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.booleans(),
    st.sampled_from([1, 50, None]),
    st.sampled_from([(torch.float64, 1e-10), (torch.float32, 1e-5)]),
)
def test_the_low_rank_terms_are_those_of_the_loop(lengths, dropout, width, precision):
    dtype, tolerance = precision
    *inputs, keep = tensors(lengths, dtype)
    loop, at_once = both_ways(lengths, inputs, keep if dropout else None, length_from=width)
    for a, b in zip(at_once, loop, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("wanted", ["yxB", "yAB", "xAB", "xB", "B"])
def test_what_is_frozen_gets_no_gradient(wanted):
    lengths = [11, 0, 3, 20]
    *inputs, keep = tensors(lengths)
    loop, at_once = both_ways(lengths, inputs, keep, wanted)
    assert len(at_once) == 1 + len(wanted)
    for a, b in zip(at_once, loop, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_rest_of_a_padded_rank_gets_a_gradient_of_zero():
    lengths = [9, 17, 4]
    *inputs, keep = tensors(lengths)
    with torch.no_grad():
        inputs[2][1, 1:] = 0.0
        inputs[3][1, :, 1:] = 0.0
    *_, (_, _, _, grad_A, grad_B) = both_ways(lengths, inputs, keep)
    assert grad_A[1, 1:].abs().max() == 0 == grad_B[1, :, 1:].abs().max()
    assert grad_A[1, 0].abs().min() > 0 and grad_B[1, :, 0].abs().min() > 0


@pytest.mark.parametrize("broken", ["x", "A", "B"])
def test_infinite_numbers_stay_with_their_client(broken):
    """Neighbours share operations, and neither sums nor blocks."""
    lengths = [9, 17, 4]
    *inputs, _ = tensors(lengths)
    with torch.no_grad():
        dict(zip("yxAB", inputs, strict=True))[broken][9 if broken == "x" else 1] = torch.inf
    loop, at_once = both_ways(lengths, inputs, None)
    others = torch.tensor([True] * 9 + [False] * 17 + [True] * 4)
    for a, b in zip(at_once, loop, strict=True):
        rows = others if len(a) == sum(lengths) else torch.tensor([True, False, True])
        assert a[rows].isfinite().all()
        torch.testing.assert_close(a[rows], b[rows], rtol=1e-10, atol=1e-12)
    assert not at_once[0].isfinite().all()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any), st.sampled_from([4, 16, None]))
@settings(max_examples=50, deadline=None)
def test_no_block_has_tokens_of_two_clients(lengths, width):
    plan = blocks.plan_blocks(lengths, width, CPU)
    client = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    ones = plan.gather(torch.ones(len(client), 1))
    owners = plan.gather(client[:, None].double())
    assert torch.equal(owners, owners[:, :1].expand_as(owners))
    assert torch.equal(plan.scatter(owners)[:, 0].long(), client)
    assert plan.sums(plan.without_pads(ones.clone()).sum(1)).flatten().tolist() == lengths
    if width is None:
        assert len(ones) == sum(n > 0 for n in lengths)
    else:  # one client's tokens are many, others have few: nobody is padded up to the longest
        assert ones.numel() <= sum(lengths) + len(lengths) * max(2 * plan.length, 8)


def test_one_long_client_does_not_pad_the_others():
    plan = blocks.plan_blocks([4000] + [10] * 50, 8, CPU)
    assert plan.gather(torch.ones(4500, 1)).numel() < 1.5 * 4500


def lora(task, modules):
    return LoraConfig(task_type=task, r=4, lora_alpha=8, lora_dropout=0.1, target_modules=modules)


BASES = {
    "llama": (tiny_llama, lora("CAUSAL_LM", ["q_proj", "v_proj", "down_proj"])),
    "roberta": (lambda: tiny_roberta(3), lora("SEQ_CLS", ["query", "value", "dense"])),
}


@pytest.mark.parametrize("name", BASES)
def test_training_is_that_of_the_loop(name, on_a_gpu):
    """Shared prefixes, heads that train, dropout; a client has nothing to do from its second step on."""
    build, config = BASES[name]
    base, data = build().double(), clients_data((3, 1, 2))
    loop = train_stacked(base, config, data, sgd(0.05), dropout_seed=3)
    on_a_gpu()
    at_once = train_stacked(base, config, data, sgd(0.05), dropout_seed=3)
    for k in range(len(data)):
        assert moved(at_once.bank.row(k), loop.bank.row(0)) or k == 0, "else nothing would be compared"
        assert apart(at_once.bank.row(k), loop.bank.row(k)) <= 1e-10
    torch.testing.assert_close(at_once.loss, loop.loss, rtol=1e-10, atol=0)


def test_ranks_and_scales_of_their_own(on_a_gpu):
    base, config, data = tiny_llama().double(), BASES["llama"][1], clients_data((2, 2, 2))
    model = make_stacked(base, config, data)
    work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]

    def train():
        bank, rules = start_bank(model, 3), LocalRules(sgd(0.05))
        return train_locally(model, bank, work, rules, ranks=[1, 4, 2]).bank

    loop = train()
    on_a_gpu()
    at_once = train()
    for k in range(3):
        assert apart(at_once.row(k), loop.row(k)) <= 1e-10


def operations(model, clients):
    """How many operations a pass of that many clients takes, forward and backward, loss included."""
    data = clients_data((1, 1, 1, 1)) * (clients // 4)
    steps = [steps_of(k, client, model.layout)[0] for k, client in enumerate(data)]
    leaves = {name: t.requires_grad_() for name, t in start_bank(model, clients).tensors.items()}
    pack = build_pack(steps, model.layout)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss = model.losses(leaves, pack, dropout_seed=3).loss.sum()
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


@pytest.mark.parametrize("name", BASES)
def test_a_pass_of_64_clients_takes_as_many_operations_as_one_of_4(name, on_a_gpu, monkeypatch):
    """Dropout included, drawn as on a GPU."""
    build, config = BASES[name]
    model = make_stacked(build().double(), config, clients_data((1,)))
    assert model.layout.prefix or name == "roberta"
    monkeypatch.setattr(dropout, "_streams", hashed_dropout)
    on_a_gpu()
    few, many = (operations(model, clients) for clients in (4, 64))
    assert many <= 1.05 * few


def test_a_loop_takes_more_operations_the_more_clients_there_are():
    """What the test above would see if blocks were not used."""
    build, config = BASES["llama"]
    model = make_stacked(build().double(), config, clients_data((1,)))
    few, many = (operations(model, clients) for clients in (4, 16))
    assert many > 1.5 * few
