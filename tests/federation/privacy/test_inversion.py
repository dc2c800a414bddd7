"""Which features lie in the span of a change: by a change made of known ones."""

import pytest
import torch

from fedloom.federation.privacy.inversion import Span, distances, span_of

INPUTS = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
THERE = [3, 7, 20, 41]


def change(tokens, rows=8):
    """Σ_t u_t x_tᵀ with random u_t."""
    return torch.randn(rows, len(tokens), generator=torch.Generator().manual_seed(1)) @ INPUTS[tokens]


def test_the_tokens_that_were_there_lie_in_the_span_and_no_other_does():
    found = distances(INPUTS, [span_of(change(THERE))])
    assert set((found < 1e-4).nonzero().flatten().tolist()) == set(THERE)
    assert float(found[[k for k in range(50) if k not in THERE]].min()) > 0.3


def test_a_factor_behind_another_shows_what_the_other_lets_through():
    down = torch.randn(12, 24, generator=torch.Generator().manual_seed(2))
    seen = (change(THERE, rows=30) @ down.T).double()
    found = distances(INPUTS.double(), [span_of(seen, down.double())])
    assert found.argsort()[: len(THERE)].sort().values.tolist() == THERE


@pytest.mark.parametrize(
    "rows", [torch.zeros(8, 24), torch.randn(30, 24, generator=torch.Generator().manual_seed(3))]
)
def test_nothing_and_every_direction_tell_nothing(rows):
    assert not span_of(rows).tells
    assert distances(INPUTS, [span_of(rows)]).tolist() == [1.0] * 50


def test_more_tokens_than_rows_and_noise_hide_them():
    many = list(range(20))
    assert float(distances(INPUTS, [span_of(change(many))])[many].min()) > 0.1
    noise = 30 * torch.randn(8, 24, generator=torch.Generator().manual_seed(4))
    assert float(distances(INPUTS, [span_of(change(THERE) + noise)])[THERE].min()) > 0.3


def test_of_two_spans_a_token_must_lie_in_both():
    both = distances(INPUTS, [span_of(change(THERE)), span_of(change([3, 7]))])
    assert set((both < 1e-4).nonzero().flatten().tolist()) == {3, 7}
    assert Span(torch.eye(24)[:3]).tells
