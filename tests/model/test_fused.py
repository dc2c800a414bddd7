"""Norm, gated MLP, GELU and rotation by hand: gradients as torch's own, put in only where they fit."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_llama, tiny_roberta
from transformers.activations import ClippedGELUActivation
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fedloom.model import fused
from fedloom.model.fused import GELU, GatedMLP, RMSNorm, fusable_rotary, fuse, rotate


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_alike(ours, theirs, inputs):
    """Equal outputs, and equal gradients of the inputs under a random gradient of the outputs."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = random(*ours.shape, seed=9).detach()
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_norm_equals_its_formula():
    weight = torch.nn.Parameter(random(8, seed=1).detach(), requires_grad=False)
    x = random(2, 3, 8)
    norm = RMSNorm(weight, 0.1)
    assert_alike(norm(x), weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1), [x])
    assert torch.autograd.gradcheck(norm, (x,))


def test_the_gated_mlp_equals_its_formula():
    mlp = tiny_llama(num_hidden_layers=1).double().model.layers[0].mlp.requires_grad_(False)
    x = random(2, 3, 32)
    by_hand = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert_alike(GatedMLP(mlp)(x), by_hand, [x])


@pytest.mark.parametrize("block", [4, 7, 24, 100], ids=["even", "overlapping", "one", "not full"])
def test_the_gelu_equals_its_formula_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", block)
    x = random(2, 3, 4)
    assert_alike(GELU()(x), x * (1 + torch.erf(x / 2**0.5)) / 2, [x])
    assert_alike(GELU()(x.mT), F.gelu(x.mT), [x])


def test_every_pass_shows_the_gelu_the_same_shape(monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", 16)
    seen = set()
    real = fused._in_blocks
    monkeypatch.setattr(
        fused,
        "_in_blocks",
        lambda write, *tensors: real(
            lambda *block: (seen.update(t.shape for t in block), write(*block)), *tensors
        ),
    )
    for tokens in (5, 6, 9):
        x = random(1, tokens, 8)
        torch.autograd.grad(GELU()(x).sum(), x)
    assert seen == {(16,)}


def test_other_gelus_keep_their_own_code():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        torch.nn.GELU(),
        torch.nn.GELU(approximate="tanh"),
        ClippedGELUActivation(-10, 10),
    ).bfloat16()
    fuse(model)
    assert [type(module) is GELU for module in model[1:]] == [True, False, False]


def test_the_rotation_equals_that_of_transformers():
    q, k, angles = random(2, 4, 3, 6), random(2, 2, 3, 6, seed=1), random(2, 3, 6, seed=2).detach()
    ours = rotate(q, k, angles.cos(), angles.sin())
    theirs = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    assert_alike(ours[0], theirs[0], [q])
    assert_alike(ours[1], theirs[1], [k])


def kinds(model):
    return {type(module) for module in model.modules()}


def test_a_llama_gets_them_and_says_the_same():
    model, plain = tiny_llama().double(), tiny_llama().double()
    ids = torch.tensor([[3, 7, 9, 20, 30, 40]])
    fuse(model)
    assert {RMSNorm, GatedMLP} <= kinds(model)
    with torch.no_grad():
        # transformers' norm rounds to float32 on its way.
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


def test_another_activation_keeps_its_own_code():
    model = tiny_llama(hidden_act="gelu")
    fuse(model)
    assert RMSNorm in kinds(model) and GatedMLP not in kinds(model)


class Packed(torch.nn.Linear):
    """As bitsandbytes' 4-bit layer: the weight is packed into bytes, the output has the input's dtype."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.real = layer.weight.detach()
        self.weight = torch.nn.Parameter(torch.zeros(10, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return F.linear(x.to(self.real.dtype), self.real).to(x.dtype)


def test_a_quantised_mlp_is_tried_in_the_models_dtype():
    model, ids = tiny_llama(num_hidden_layers=1), torch.tensor([[3, 7, 9, 20]])
    mlp = model.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = map(Packed, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    with torch.no_grad():
        before = model(ids).logits
        fuse(model)
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
    assert GatedMLP in kinds(model)


@pytest.mark.parametrize("make, rotates", [(tiny_llama, True), (tiny_roberta, False)])
def test_only_code_that_rotates_alike_is_replaced(make, rotates):
    assert bool(fusable_rotary(make(), torch.float32)) == rotates
