"""Cross entropy in chunks equals torch's own on all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.model import loss
from fedloom.model.loss import class_losses, token_losses

WIDTH, VOCABULARY = 6, 11


def random_head(kind, seed=0):
    weight = torch.randn(
        VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return {
        "linear": lambda h: h @ weight.T,
        "soft-capped": lambda h: 3.0 * torch.tanh(h @ weight.T / 3.0),
        "normed and scaled": lambda h: F.layer_norm(h, (WIDTH,)) @ weight.T * 0.5 + 1.0,
    }[kind]


def random_labels(labels, seed=1):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(labels, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(VOCABULARY, (labels,), generator=generator)
    weights = torch.rand(labels, generator=generator, dtype=torch.float64)
    return hidden, targets, weights


@settings(max_examples=40, deadline=None)
@given(
    labels=st.integers(1, 9),
    chunk=st.integers(1, 10),
    kind=st.sampled_from(["linear", "soft-capped", "normed and scaled"]),
)
def test_equals_cross_entropy_for_any_chunk_and_any_head(labels, chunk, kind):
    head, (hidden, targets, weights) = random_head(kind), random_labels(labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_CHUNK_NUMBERS", chunk * VOCABULARY)
        fast, correct = token_losses(hidden, targets, head, VOCABULARY)
    slow = F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    assert torch.equal(correct, head(hidden).argmax(-1) == targets)
    (fast_gradient,) = torch.autograd.grad((fast * weights).sum(), hidden)
    (slow_gradient,) = torch.autograd.grad((slow * weights).sum(), hidden)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    head, (hidden, targets, _) = random_head("soft-capped"), random_labels(5)
    assert torch.autograd.gradcheck(lambda h: token_losses(h, targets, head, VOCABULARY)[0], (hidden,))


@pytest.mark.parametrize("chunk, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (100, [5])])
def test_the_head_never_sees_more_than_a_chunk(monkeypatch, chunk, sizes):
    monkeypatch.setattr(loss, "_CHUNK_NUMBERS", chunk * VOCABULARY)
    seen, head = [], random_head("linear")
    hidden, targets, _ = random_labels(5)
    token_losses(hidden, targets, lambda h: (seen.append(h.shape[0]), head(h))[1], VOCABULARY)
    assert seen == sizes


def test_a_vocabulary_larger_than_a_chunk_still_gets_one_label_at_a_time(monkeypatch):
    monkeypatch.setattr(loss, "_CHUNK_NUMBERS", VOCABULARY - 1)
    hidden, targets, _ = random_labels(3)
    head = random_head("linear")
    losses, _ = token_losses(hidden, targets, head, VOCABULARY)
    torch.testing.assert_close(losses, F.cross_entropy(head(hidden), targets, reduction="none"))


def test_without_a_gradient_none_is_taken():
    head, (hidden, targets, _) = random_head("linear"), random_labels(4)
    grad_modes = []

    def spying_head(h):
        grad_modes.append(torch.is_grad_enabled() and h.requires_grad)
        return head(h)

    losses, correct = token_losses(hidden.detach(), targets, spying_head, VOCABULARY)
    assert grad_modes == [False] and not losses.requires_grad and not correct.requires_grad
    torch.testing.assert_close(losses, F.cross_entropy(head(hidden.detach()), targets, reduction="none"))


def test_large_logits_neither_overflow_nor_vanish():
    hidden = torch.tensor([[1.0], [1.0]]).requires_grad_()
    head = lambda h: h * torch.tensor([[0.0, 300.0, -300.0]])  # noqa: E731
    losses, _ = token_losses(hidden, torch.tensor([1, 2]), head, 3)
    assert losses.tolist() == [0.0, 600.0]
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    assert gradient[:, 0].tolist() == [0.0, 600.0]


def test_half_precision_logits_are_summed_in_float32():
    hidden, targets, _ = random_labels(6)
    head = random_head("linear")
    half = hidden.detach().bfloat16().requires_grad_()
    losses, _ = token_losses(half, targets, lambda h: head(h.double()).bfloat16(), VOCABULARY)
    assert losses.dtype == torch.float32
    exact = F.cross_entropy(head(half.double()).bfloat16().float(), targets, reduction="none")
    torch.testing.assert_close(losses, exact, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), half)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().max() > 0


def test_class_losses_train_the_head_too():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 1, 0])
    losses, predicted = class_losses(logits, targets)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(predicted, logits.argmax(-1))
    assert torch.autograd.grad(losses.sum(), logits)[0].abs().min() > 0
