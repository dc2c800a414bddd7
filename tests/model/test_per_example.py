"""Each example's gradient cut to a norm, in one pass of many clients, against one example after another."""

import random

import pytest
import torch
from engine import BEGINNING, make_stacked, random_sequence, start_bank
from peft import LoraConfig, PromptEncoderConfig, PromptTuningConfig
from tiny import tiny_bert, tiny_bloom, tiny_gpt2, tiny_llama

from fedloom.data.encode import Tokens
from fedloom.model import per_example
from fedloom.model.adapters.lora import add_low_rank
from fedloom.model.layout import Batch
from fedloom.model.packing import build_pack
from fedloom.model.per_example import _add_products, clipped_sums, squared_norms

pytestmark = pytest.mark.usefixtures("full_precision")

EXAMPLES = (3, 1, 4)  # of each client


def causal(**more):
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **more}
    return LoraConfig(task_type="CAUSAL_LM", **options)


CASES = {
    "llama": (tiny_llama, causal()),
    "llama, dropout": (tiny_llama, causal(lora_dropout=0.3)),
    "llama, prompts": (tiny_llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "llama, p-tuning": (
        tiny_llama,
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=24),
    ),
    "gpt2": (tiny_gpt2, causal(target_modules=["c_attn"], fan_in_fan_out=True)),
    "bloom": (tiny_bloom, causal(target_modules=["query_key_value"])),
    "bert, with its head": (
        lambda: tiny_bert(3),
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value", "dense"]),
    ),
}


def examples_of(model, sequence, seed=0):
    """For each client its batches, of one example each."""
    rng = random.Random(seed)
    return [
        [Batch([sequence(rng)], 1 / rng.randrange(1, 4), (0, k, 0, i)) for i in range(count)]
        for k, count in enumerate(EXAMPLES)
    ]


def drawn(model):
    """Adapters that differ from client to client, B among them."""
    bank = start_bank(model, len(EXAMPLES))
    generator = torch.Generator().manual_seed(2)
    noise = {n: 0.3 * torch.randn(t.shape, generator=generator).to(t) for n, t in bank.tensors.items()}
    return {name: t + noise[name] for name, t in bank.tensors.items()}


def one_by_one(model, leaves, frozen, clients, clip, seed):
    """A loop over single examples: the gradient of each, cut, added up."""
    sums, norms = {name: torch.zeros_like(t) for name, t in leaves.items()}, []
    for k, batches in enumerate(clients):
        for batch in batches:
            own = {name: t[k : k + 1].clone().requires_grad_() for name, t in leaves.items()}
            rest = {name: t[k : k + 1] for name, t in frozen.items()}
            loss = model.losses(own | rest, build_pack([[batch]], model.layout), seed).loss.sum()
            gradient = torch.autograd.grad(
                loss, list(own.values()), allow_unused=True, materialize_grads=True
            )
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            norms.append(float(norm))
            for name, g in zip(own, gradient, strict=True):
                sums[name][k] += g[0] * min(1.0, clip / float(norm))
    return sums, norms


def agree(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, t in theirs.items():
        torch.testing.assert_close(ours[name], t, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def compared(model, leaves, frozen, clients, seed=None):
    """Some examples are cut and others are not."""
    *_, norms = one_by_one(model, leaves, frozen, clients, 1.0, seed)
    clip = sorted(norms)[len(norms) // 2]
    expected, _ = one_by_one(model, leaves, frozen, clients, clip, seed)
    agree(clipped_sums(model, leaves, frozen, clients, clip, seed), expected)
    loose, _ = one_by_one(model, leaves, frozen, clients, 1e9, seed)
    agree(clipped_sums(model, leaves, frozen, clients, 1e9, seed), loose)


@pytest.mark.parametrize("case", CASES)
def test_clipping_in_one_pass_is_a_loop_over_single_examples(case):
    make, config = CASES[case]
    model = make_stacked(make().double(), config)
    model.share_prefix(0 if "bert" in case else len(BEGINNING))
    seed = 7 if "dropout" in case else None
    if seed is not None:  # the prefix's mask is one for a client's whole step; alone each example has its own
        model.share_prefix(0)
    compared(model, drawn(model), {}, examples_of(model, random_sequence), seed)


@pytest.mark.parametrize("packed", [True, False])
def test_a_frozen_factor_has_no_part_in_the_norm(packed):
    model = make_stacked(tiny_llama().double(), causal(), packed=packed)
    bank = drawn(model)
    leaves = {name: t for name, t in bank.items() if ".lora_B." in name}
    frozen = {name: t for name, t in bank.items() if name not in leaves}
    compared(model, leaves, frozen, examples_of(model, random_sequence))


def test_a_preference_is_one_example():
    def preference(rng):
        chosen, rejected = random_sequence(rng), random_sequence(rng)
        side = Tokens(rejected.ids, rejected.answer_start, -1)
        return Tokens(chosen.ids, chosen.answer_start, -1, rejected=side, reference=0.25)

    model = make_stacked(tiny_llama().double(), causal())
    compared(model, drawn(model), {}, examples_of(model, preference))


@pytest.mark.parametrize("tokens", [1, 40])
def test_norms_come_either_way(tokens):
    """From Gram matrices where an example is short, else from the product."""
    torch.manual_seed(0)
    x, y = (torch.randn(2 * tokens, 16, dtype=torch.float64) for _ in range(2))
    A = torch.randn(1, 4, 16, dtype=torch.float64, requires_grad=True)
    B = torch.randn(1, 16, 4, dtype=torch.float64, requires_grad=True)
    found = {}

    def note(factor, left, right):
        found[factor] = left, right

    add_low_rank(y.clone(), x, A, B, 0.5, (2 * tokens,), note=note).square().sum().backward()
    assert A.grad is None and B.grad is None
    squares = {factor: squared_norms([(*sides, (tokens, tokens))]) for factor, sides in found.items()}
    for e in range(2):
        rows = slice(e * tokens, (e + 1) * tokens)
        out = add_low_rank(y[rows].clone(), x[rows], A, B, 0.5, (tokens,)).square().sum()
        for factor, gradient in zip(("lora_A", "lora_B"), torch.autograd.grad(out, (A, B)), strict=True):
            torch.testing.assert_close(squares[factor][e], gradient.square().sum())


@pytest.mark.parametrize("at_once", [1, 2 * 4 * 16, 2**22])
def test_norms_are_those_of_examples_long_and_short_over_several_calls(at_once, monkeypatch):
    monkeypatch.setattr(per_example, "_MOST_AT_ONCE", at_once)
    draws = torch.Generator().manual_seed(0)
    calls = []
    for lengths in ((1, 9, 2, 30, 1), (1, 4, 0, 7, 1)):
        sides = (torch.randn(sum(lengths), w, generator=draws, dtype=torch.float64) for w in (16, 4))
        calls.append((*sides, lengths))
    expected = sum(
        torch.stack([a.T @ b for a, b in zip(left.split(n), right.split(n), strict=True)])
        for left, right, n in calls
    )
    torch.testing.assert_close(squared_norms(calls), expected.square().sum((1, 2)))


@pytest.mark.parametrize("tokens", [6, 200])
def test_in_half_precision_too_what_is_clipped_is_within_its_clip(tokens):
    """Contributions that cancel over the tokens, by Gram matrices (6 tokens) and by the product (200)."""
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.randn(tokens, width, generator=draws) for width in (8, 64))
    left[1::2], right[1::2] = -left[::2] * 1.001, right[::2]
    left, right = 100 * left.bfloat16(), right.bfloat16()
    factors = (1 / squared_norms([(left, right, (tokens,))]).sqrt()).clamp(max=1.0)
    total = torch.zeros(1, 8, 64)
    _add_products(total, left, right, (tokens,), factors, [0])
    assert float(total.norm()) == pytest.approx(1.0, abs=1e-3)
