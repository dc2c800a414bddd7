"""Stacked heads and prompts: every client's own, side by side."""

import pytest
import torch
from peft import PromptEncoder, PromptEncoderConfig
from torch import nn

from fedloom.model.adapters.heads import StackedLinear
from fedloom.model.adapters.prompts import PROMPT, as_saved, virtual_tokens
from fedloom.model.wave import Wave


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
def test_a_stacked_head_is_each_clients_own_linear_layer(bias):
    wave, lengths = Wave(), (3, 0, 2)
    head = StackedLinear(nn.Linear(4, 2, bias=bias).double(), "score", wave)
    x, weight, offset = random(5, 4), random(3, 2, 4, seed=1), random(3, 2, seed=2)
    parameters = {"score.weight": weight, **({"score.bias": offset} if bias else {})}
    with wave.through(parameters, lengths, in_head=True):
        fast = head(x)
    slow = torch.cat([x[:3] @ weight[0].T, x[3:] @ weight[2].T])
    if bias:
        slow = slow + offset[[0, 0, 0, 2, 2]]
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    upstream = random(5, 2, seed=3).detach()
    inputs = [x, *parameters.values()]
    for a, b in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_stacked_head_takes_sequences_of_one_token():
    wave = Wave()
    head = StackedLinear(nn.Linear(4, 2).double(), "score", wave)
    x, weight, offset = random(5, 4), random(2, 2, 4, seed=1), random(2, 2, seed=2)
    with wave.through({"score.weight": weight, "score.bias": offset}, (3, 2), in_head=True):
        assert torch.equal(head(x[:, None])[:, 0], head(x))


def test_outside_a_wave_a_stacked_head_is_its_base():
    head = StackedLinear(nn.Linear(4, 2).double(), "score", Wave())
    x = random(5, 4)
    assert torch.equal(head(x), head.base(x))


def prompt_encoders(clients):
    """PEFT's own encoders, one per client, and their parameters stacked under PEFT's names."""
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        token_dim=4,
        encoder_hidden_size=6,
        num_transformer_submodules=1,
    )
    torch.manual_seed(0)
    encoders = [PromptEncoder(config).double() for _ in range(clients)]
    names = [name for name, _ in encoders[0].named_parameters()]
    stacked = {
        f"prompt_encoder.{name}": torch.stack(
            [e.get_parameter(name).detach() for e in encoders]
        ).requires_grad_()
        for name in names
    }
    return encoders, stacked


def test_virtual_tokens_of_p_tuning_are_those_of_each_clients_encoder():
    encoders, stacked = prompt_encoders(3)
    upstream = random(3, 3, 4).detach()
    fast = virtual_tokens(stacked)
    fast_gradients = torch.autograd.grad(fast, list(stacked.values()), upstream)
    for k, encoder in enumerate(encoders):
        slow = encoder(torch.arange(3))
        torch.testing.assert_close(fast[k], slow, rtol=1e-12, atol=1e-12)
        slow_gradients = torch.autograd.grad(slow, list(encoder.parameters()), upstream[k])
        for name, a, b in zip(stacked, fast_gradients, slow_gradients, strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-12, atol=1e-12, msg=name)


def test_virtual_tokens_of_prompt_tuning_are_the_parameters():
    prompts = random(3, 5, 4)
    assert virtual_tokens({PROMPT: prompts}) is prompts


def test_lora_has_no_virtual_tokens():
    assert virtual_tokens({"q.lora_A.weight": random(2, 3, 4)}) is None


def test_p_tuning_saves_what_its_encoder_makes_and_a_head_as_it_is():
    (encoder,), stacked = prompt_encoders(1)
    row = {name: t[0] for name, t in stacked.items()} | {"score.weight": random(2, 4)}
    saved = as_saved(row)
    assert saved.keys() == {PROMPT, "score.weight"}
    torch.testing.assert_close(saved[PROMPT], encoder(torch.arange(3)), rtol=1e-12, atol=1e-12)
    assert saved["score.weight"] is row["score.weight"]


@pytest.mark.parametrize("name", [PROMPT, "q.lora_A.weight"])
def test_other_adapters_save_as_they_are(name):
    row = {name: random(3, 4)}
    assert as_saved(row) == row
