"""Changes as whole numbers: their sum is the weighted mean but for rounding, and nothing wraps around."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.federation.secure_sum import _DRAWS, COUNTS, NUMBERS, Counts, SecureSum, summed
from fedloom.options.fed import FedConfig
from fedloom.training.algorithms import algorithm_with_server

ONE = Counts(1, 1, 0, 1, 1, 1.0)


def change(numbers, norm, seed=0):
    drawn = torch.randn(numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"w": drawn * (norm / drawn.norm())}


def sent_by(secure, delta, seed, clip=math.inf):
    return secure.encode(delta, ONE, seed, clip)[NUMBERS].double() / secure.units


@given(
    st.integers(1, 127),
    st.sampled_from([1e-3, 1.0, 7.0, 100.0]),
    st.booleans(),
    st.integers(0, 99),
    st.sampled_from([16, 32]),
)
def test_the_sum_is_the_weighted_mean_but_for_rounding(clients, largest, weighted, seed, bits):
    draws = torch.Generator().manual_seed(seed)
    secure = SecureSum(largest, clients, 40 if weighted else None, bits)
    assert secure.units * largest >= 127, "as many steps to R as int8 has"
    examples = torch.randint(1, 41, (clients,), generator=draws)
    deltas = largest * (2 * torch.rand(clients, 6, generator=draws, dtype=torch.float64) - 1)
    # All clients at the bound at once is as far as a sum can go.
    deltas[:, 0], deltas[:, 1] = largest, -largest
    sent = [
        secure.encode({"w": delta}, Counts(1, int(n), 2, 3, 4, 0.5 + k), k)
        for k, (delta, n) in enumerate(zip(deltas, examples, strict=True))
    ]
    mean, counts = secure.decode(summed(sent), {"w": deltas[0]})
    shares = examples.double() / 40 if weighted else torch.ones(clients).double()
    wanted = (shares[:, None] * deltas).sum(0) / shares.sum()
    assert (mean["w"] - wanted).abs().max() <= clients / secure.units / shares.sum()
    assert counts.examples == examples.sum() and (counts.clients, counts.labels) == (clients, 3 * clients)
    assert counts.loss == pytest.approx(
        float((examples * (0.5 + torch.arange(clients))).sum() / examples.sum())
    )


def test_a_number_beyond_the_bound_is_cut_and_what_is_not_finite_refused():
    secure = SecureSum(1.0, 3, None)
    mean, _ = secure.decode(secure.encode({"w": torch.tensor([5.0, -0.25])}, ONE, 0), {"w": torch.zeros(2)})
    assert mean["w"].tolist() == [1.0, -0.25]
    with pytest.raises(ValueError, match="not finite"):
        secure.encode({"w": torch.tensor([torch.nan])}, ONE, 0)


@pytest.mark.parametrize(
    ("clients", "largest", "off_by"), [(8, 1.0, 0.3), (50, 1.0, 1.2), (8, 5e-3, 0.002), (50, 5e-3, 0.01)]
)
def test_however_small_a_change_is_the_mean_of_many_rounds_is_it(clients, largest, off_by):
    """Of numbers of about 10⁻³; for R = 1 a step of 50 clients is 2 · 10⁻³."""
    secure, delta = SecureSum(largest, clients, 1, 16), change(2000, 1e-3 * 2000**0.5)
    rounds = torch.stack([sent_by(secure, delta, seed) for seed in range(400)])
    up = (delta["w"] * secure.units).frac().abs()  # rounded away from 0 with this probability
    standard_error = (up * (1 - up) / 400).sqrt() / secure.units
    off = rounds.mean(0) - delta["w"]
    assert abs(off.sum()) < 4 * standard_error.norm()
    likely = up * (1 - up) > 0.02  # others are rounded otherwise too seldom for a normal distribution
    assert (off[likely] / standard_error[likely]).abs().max() < 5
    assert off.norm() < 1.1 * standard_error.norm()
    assert (rounds[0] - delta["w"]).norm() < off_by * delta["w"].norm()
    assert torch.equal(rounds[0], sent_by(secure, delta, 0)) and not torch.equal(rounds[0], rounds[1])


@given(st.integers(0, 99), st.sampled_from([1e-3, 0.5]), st.sampled_from([16, 32]), st.booleans())
def test_under_privacy_what_is_sent_is_within_the_clip(seed, clip, bits, sparse):
    """The sensitivity that noise is for is that of what is sent, whatever rounding does to a change."""
    secure = SecureSum(1.0, 50, None, bits)
    delta = change(3 if sparse else 4000, clip, seed)
    assert sent_by(secure, delta, seed, clip).norm() <= clip


def test_under_privacy_a_change_at_the_clip_keeps_its_direction():
    """Cut towards 0 nothing of it would be left: no number is as large as a step."""
    clip = 0.05
    secure, delta = SecureSum(clip, 50, None, 16), change(400_000, clip * (1 - 1e-6))
    assert delta["w"].abs().max() * 0.2 < 1 / secure.units
    rounds = torch.stack([sent_by(secure, delta, seed, clip) for seed in range(30)])
    mean = rounds.mean(0)
    cosine = float(mean @ delta["w"] / mean.norm() / delta["w"].norm())
    share = float(mean @ delta["w"] / delta["w"].norm() ** 2)
    assert (rounds.norm(dim=1) <= clip).all() and cosine > 0.9 and share > 0.5
    assert (mean - share * delta["w"]).norm() < 1.1 * rounds.std(0).norm() / 30**0.5, "the rest is chance"
    assert not sent_by(secure, delta, 0, 1e-9).any(), f"after {_DRAWS} draws it is cut"


def test_who_loses_most_of_a_change_is_told_once_which_bound_to_choose(caplog):
    secure = SecureSum(1.0, 50, 1, 16)
    for seed in range(3):
        sent_by(secure, {"w": torch.tensor([1e-3, -1e-5, 1e-5, 0.0])}, seed)
    (said,) = caplog.messages
    assert "secure_aggregation: 1 has steps of 0.002, at which " in said and "of the 3 numbers that" in said
    assert "its largest is 0.001" in said and said.endswith("such as --secure_aggregation 0.002")
    sent_by(SecureSum(0.002, 50, 1, 16), {"w": torch.tensor([1e-3, -1e-5, 1e-5, 0.0])}, 0)
    sent_by(SecureSum(0.002, 50, 1, 16), {"w": torch.tensor([1e-3, -8e-9, 8e-9])}, 0)
    assert "choose --compress none" in caplog.messages[-1] and len(caplog.messages) == 2


@pytest.mark.parametrize(("given", "clip", "largest"), [(1.0, 0.2, 0.2), (0.01, 0.2, 0.01), (1.0, None, 1.0)])
def test_under_privacy_no_step_is_for_numbers_beyond_the_clip(given, clip, largest):
    private = {"privacy": "user", "clip": clip, "noise_multiplier": 1.0 if clip else 0.0}
    options = {"train_mode": "fed", "secure_aggregation": given, "client_num": 4, "client_num_per_step": 4}
    assert algorithm_with_server(FedConfig(model_name="m", **options, **private)).secure.largest == largest


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.int32), (16, torch.int16)])
def test_a_payload_is_four_or_two_bytes_a_number_and_its_counts(bits, dtype):
    payload = SecureSum(1.0, 3, 8, bits).encode({"w": torch.zeros(10)}, ONE, 0)
    assert payload[NUMBERS].dtype == dtype and len(payload[NUMBERS]) == 10
    assert payload[COUNTS].dtype == torch.int64
