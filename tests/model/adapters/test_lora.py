"""Stacked LoRA equals one dense formula per client, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedloom.model.adapters.lora import StackedLora, add_low_rank, bounds_of
from fedloom.model.dropout import Draws
from fedloom.model.layout import NotPerClient
from fedloom.model.wave import Wave

D_IN, D_OUT, RANK = 5, 4, 2


def random_tensors(lengths, dropout=False, seed=0):
    """``y, x, A, B`` that require gradients, and dropout factors or None."""
    generator = torch.Generator().manual_seed(seed)
    tokens, clients = sum(lengths), len(lengths)
    shapes = (tokens, D_OUT), (tokens, D_IN), (clients, RANK, D_IN), (clients, D_OUT, RANK)
    y, x, A, B = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    keep = (torch.rand(tokens, D_IN, generator=generator) > 0.3).double() / 0.7 if dropout else None
    return y, x, A, B, keep


def one_client_after_the_other(y, x, A, B, scale, lengths, keep):
    pieces = []
    for k, (start, end) in enumerate(bounds_of(lengths)):
        inputs = x[start:end] if keep is None else x[start:end] * keep[start:end]
        pieces.append(y[start:end] + scale * inputs @ A[k].T @ B[k].T)
    return torch.cat(pieces)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), st.booleans(), st.floats(0.1, 4))
def test_equals_the_formula_of_each_client(lengths, dropout, scale):
    y, x, A, B, keep = random_tensors(lengths, dropout)
    upstream = torch.randn(sum(lengths), D_OUT, dtype=torch.float64)
    fast = add_low_rank(y.clone(), x, A, B, scale, lengths, keep)
    slow = one_client_after_the_other(y, x, A, B, scale, lengths, keep)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    fast_gradients = torch.autograd.grad(fast, (y, x, A, B), upstream)
    slow_gradients = torch.autograd.grad(slow, (y, x, A, B), upstream)
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_are_those_of_finite_differences(dropout):
    lengths = [2, 0, 3]
    y, x, A, B, keep = random_tensors(lengths, dropout)

    def function(y, x, A, B):
        return add_low_rank(y.clone(), x, A, B, 1.5, lengths, keep)

    assert torch.autograd.gradcheck(function, (y, x, A, B))


@pytest.mark.parametrize("frozen", ["x", "A", "B", "y"])
def test_gradients_of_the_others_do_not_depend_on_what_is_frozen(frozen):
    """The lowest adapted layer's input needs no gradient; a frozen A is a case of its own."""
    lengths = [3, 2]
    y, x, A, B, keep = random_tensors(lengths, dropout=True)
    upstream = torch.randn(5, D_OUT, dtype=torch.float64)

    def gradients(which):
        leaves = {"y": y, "x": x, "A": A, "B": B}
        inputs = {n: t.detach().requires_grad_(n in which) for n, t in leaves.items()}
        inner = {**inputs, "y": inputs["y"].clone()}
        out = add_low_rank(inner["y"], inner["x"], inner["A"], inner["B"], 2.0, lengths, keep)
        wanted = [inputs[n] for n in which]
        return dict(zip(which, torch.autograd.grad(out, wanted, upstream), strict=True))

    every = gradients(["y", "x", "A", "B"])
    some = gradients([n for n in every if n != frozen])
    assert len(some) == 3
    for name, gradient in some.items():
        assert torch.equal(gradient, every[name])


def test_a_client_without_tokens_gets_a_gradient_of_zero():
    lengths = [2, 0]
    y, x, A, B, _ = random_tensors(lengths)
    out = add_low_rank(y.clone(), x, A, B, 1.0, lengths)
    grad_A, grad_B = torch.autograd.grad(out.square().sum(), (A, B))
    assert grad_A[0].abs().min() > 0 and grad_B[0].abs().min() > 0
    assert torch.equal(grad_A[1], torch.zeros(RANK, D_IN)) and torch.equal(
        grad_B[1], torch.zeros(D_OUT, RANK)
    )


def test_it_writes_into_the_base_layers_output():
    y, x, A, B, _ = random_tensors([3])
    with torch.no_grad():
        assert add_low_rank(y, x, A, B, 1.0, [3]).data_ptr() == y.data_ptr()


def test_bounds():
    assert bounds_of([2, 0, 3]) == [(0, 2), (2, 2), (2, 5)]


def adapted(base, dropout=0.0):
    wave = Wave()
    return StackedLora(base, "layer", 2.0, dropout, wave).double(), wave


def row_parameters(A, B):
    return {"layer.lora_A.weight": A, "layer.lora_B.weight": B}


@pytest.mark.parametrize("base", [nn.Linear(D_IN, D_OUT), Conv1D(D_OUT, D_IN)], ids=["Linear", "Conv1D"])
def test_any_module_that_maps_features_can_be_adapted(base):
    layer, wave = adapted(base)
    _, x, A, B, _ = random_tensors([4, 2])
    by_hand = layer.base(x) + 2.0 * torch.cat([x[:4] @ A[0].T @ B[0].T, x[4:] @ A[1].T @ B[1].T])
    with wave.through(row_parameters(A, B), (4, 2)):
        packed = layer(x[None])
        assert packed.shape == (1, 6, D_OUT)
        torch.testing.assert_close(packed[0], by_hand, rtol=1e-12, atol=1e-12)
    # Padded: two rows of two tokens are client 0's, one is client 1's.
    with wave.through(row_parameters(A, B), (2, 1)):
        torch.testing.assert_close(layer(x.view(3, 2, D_IN)).view(6, D_OUT), by_hand, rtol=1e-12, atol=1e-12)


def test_outside_a_wave_and_without_parameters_of_its_own_it_is_its_base():
    layer, wave = adapted(nn.Linear(D_IN, D_OUT))
    _, x, A, B, _ = random_tensors([3])
    assert torch.equal(layer(x), layer.base(x))
    with wave.through({"another.lora_A.weight": A, "another.lora_B.weight": B}, (3,)):
        assert torch.equal(layer(x), layer.base(x))
    with wave.through(row_parameters(A, B), (3,)):
        assert not torch.allclose(layer(x), layer.base(x))
    assert torch.equal(layer(x), layer.base(x))


def test_dropout_touches_the_low_rank_term_alone():
    layer, wave = adapted(nn.Linear(D_IN, D_OUT), dropout=0.5)
    _, x, A, B, _ = random_tensors([4, 2])

    def draws():
        return Draws(1, [(0,), (1,)], (4, 2), None, torch.device("cpu"))

    keep = draws().keep(x, 0.5)
    assert set(keep.unique().tolist()) == {0.0, 2.0}
    dropped = x * keep
    with wave.through(row_parameters(A, B), (4, 2), draws=draws()):
        low_rank = torch.cat([dropped[:4] @ A[0].T @ B[0].T, dropped[4:] @ A[1].T @ B[1].T])
        torch.testing.assert_close(layer(x), layer.base(x) + 2.0 * low_rank, rtol=1e-12, atol=1e-12)


def test_tokens_that_cannot_be_shared_out_are_an_error():
    layer, wave = adapted(nn.Linear(D_IN, D_OUT))
    _, x, A, B, _ = random_tensors([5, 0])
    with (
        wave.through(row_parameters(A, B), (2, 1)),
        pytest.raises(NotPerClient, match="the pass's 3"),
    ):
        layer(x)


def test_what_merely_divides_is_no_share():
    """DeBERTa projects its relative positions, too: their number may be a multiple of the clients' tokens."""
    layer, wave = adapted(nn.Linear(D_IN, D_OUT))
    _, x, A, B, _ = random_tensors([6, 0])
    with (
        wave.through(row_parameters(A, B), (2, 1)),
        pytest.raises(NotPerClient, match="the pass's 3"),
    ):
        layer(x)
    with wave.through(row_parameters(A, B), (2, 1), columns=2):  # three rows of two tokens
        assert layer(x).shape == (6, D_OUT)
    with wave.through(row_parameters(A[:1], B[:1]), (3,)):  # one client alone: all of it is its own
        assert layer(x).shape == (6, D_OUT)
