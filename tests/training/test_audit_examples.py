"""How often a canary is in a step's sum: against the estimate by the others' whole covariance."""

import torch

from fedloom.training.audit_examples import estimates

RNG = torch.Generator().manual_seed(0)
G = torch.randn(6, 20, generator=RNG, dtype=torch.float64) + 1.0
Y = torch.randn(20, generator=RNG, dtype=torch.float64)


def test_the_estimate_counts_the_other_canaries_as_noise():
    mean, noise = 0.2, 0.7
    x, spread = estimates(G, Y, mean, noise)
    for i, own in enumerate(G):
        others = torch.cat([G[:i], G[i + 1 :]])
        covariance = noise**2 * torch.eye(20) + mean * (1 - mean) * others.T @ others
        weights = torch.linalg.solve(covariance, own)
        expected = weights @ (Y - mean * others.sum(0)) / (weights @ own)
        assert torch.allclose(x[i], expected, atol=1e-10)
        assert torch.allclose(spread[i], (weights @ own) ** -0.5, atol=1e-10)


def test_of_canaries_that_have_nothing_in_common_it_is_the_inner_product():
    clip, z = 0.5, 2.0
    x, spread = estimates(clip * torch.eye(20)[:6].double(), Y, 0.5, z * clip)
    assert torch.allclose(x, Y[:6] / clip) and torch.allclose(spread, torch.full((6,), z).double())
