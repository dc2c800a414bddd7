"""The consensus error against dense products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.federation.consensus import consensus
from fedloom.model.bank import AdapterBank

MODULES = {"layers.0.q": (6, 5), "layers.1.v": (4, 9)}


def factors(peers, rank, seed, spread=1.0):
    """Random factors of peers around a common pair."""
    generator = torch.Generator().manual_seed(seed)

    def around(*shape):
        centre = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return centre + spread * torch.randn(peers, *shape, generator=generator, dtype=torch.float64)

    found = {}
    for module, (d_out, d_in) in MODULES.items():
        found[f"{module}.lora_A.weight"] = around(rank, d_in)
        found[f"{module}.lora_B.weight"] = around(d_out, rank)
    return found


def slow(tensors):
    """The definition, with dense products."""
    error, size = 0.0, 0.0
    for module in MODULES:
        A, B = (tensors[f"{module}.lora_{factor}.weight"] for factor in "AB")
        middle = B.mean(0) @ A.mean(0)
        error += sum(float((b @ a - middle).norm()) for a, b in zip(A, B, strict=True)) / len(A)
        size += float((B @ A).mean(0).norm())
    return error, error / size


@settings(max_examples=40)
@given(peers=st.integers(1, 8), rank=st.integers(1, 3), seed=st.integers(0, 99))
def test_it_is_the_definition(peers, rank, seed):
    tensors = factors(peers, rank, seed)
    ours = consensus(AdapterBank(tensors), {}, list(MODULES))
    error, relative = slow(tensors)
    assert ours.error == pytest.approx(error, rel=1e-9, abs=1e-12)
    assert ours.relative == pytest.approx(relative, rel=1e-9, abs=1e-12)


def test_a_shared_a_may_stand_outside_the_bank():
    tensors = factors(4, 2, seed=1)
    shared = {name: t[0] for name, t in tensors.items() if "lora_A" in name}
    own = {name: t for name, t in tensors.items() if "lora_B" in name}
    whole = own | {name: t.expand(4, *t.shape) for name, t in shared.items()}
    ours = consensus(AdapterBank(own), shared, list(MODULES))
    assert ours.error == pytest.approx(slow(whole)[0], rel=1e-12)


def test_peers_that_agree_have_none():
    row = {name: t[0] for name, t in factors(1, 2, seed=3).items()}
    ours = consensus(AdapterBank.repeat(row, 6), {}, list(MODULES))
    assert ours.error == pytest.approx(0, abs=1e-12) and ours.relative == pytest.approx(0, abs=1e-12)


def test_peers_that_nearly_agree_are_told_apart_to_many_digits():
    tensors = factors(5, 2, seed=4, spread=1e-9)
    ours = consensus(AdapterBank(tensors), {}, list(MODULES))
    assert ours.error == pytest.approx(slow(tensors)[0], rel=1e-5)


def test_before_training_there_is_nothing_to_compare_with():
    row = {name: torch.zeros_like(t[0]) for name, t in factors(1, 2, seed=3).items()}
    ours = consensus(AdapterBank.repeat(row, 3), {}, list(MODULES))
    assert ours.error == 0.0 and math.isnan(ours.relative)
