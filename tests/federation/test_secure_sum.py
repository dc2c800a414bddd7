"""Changes as whole numbers: their sum is the weighted mean but for rounding, and nothing wraps around."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.federation.secure_sum import COUNTS, NUMBERS, Counts, SecureSum, summed


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
    assert secure.units * largest >= 127, "the steps of int8"
    examples = torch.randint(1, 41, (clients,), generator=draws)
    deltas = largest * (2 * torch.rand(clients, 6, generator=draws, dtype=torch.float64) - 1)
    # All clients at the bound at once is as far as a sum can go.
    deltas[:, 0], deltas[:, 1] = largest, -largest
    sent = [
        secure.encode({"w": delta}, Counts(1, int(n), 2, 3, 4, 0.5 + k))
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
    secure, counts = SecureSum(1.0, 3, None), Counts(1, 1, 0, 1, 1, 1.0)
    mean, _ = secure.decode(secure.encode({"w": torch.tensor([5.0, -0.25])}, counts), {"w": torch.zeros(2)})
    assert mean["w"].tolist() == [1.0, -0.25]
    with pytest.raises(ValueError, match="not finite"):
        secure.encode({"w": torch.tensor([torch.nan])}, counts)


@given(st.integers(0, 99))
def test_under_privacy_whole_numbers_are_within_the_clip_of_the_change(seed):
    """The sensitivity that noise is for is that of what is sent."""
    secure = SecureSum(1.0, 1000, None)
    delta = torch.randn(4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta *= 1e-3 / delta.norm()
    sent = secure.encode({"w": delta}, Counts(1, 1, 0, 1, 1, 1.0))[NUMBERS].double() / secure.units
    assert sent.norm() <= delta.norm() and (sent - delta).abs().max() < 1 / secure.units


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.int32), (16, torch.int16)])
def test_a_payload_is_four_or_two_bytes_a_number_and_its_counts(bits, dtype):
    payload = SecureSum(1.0, 3, 8, bits).encode({"w": torch.zeros(10)}, Counts(1, 1, 0, 1, 1, 1.0))
    assert payload[NUMBERS].dtype == dtype and len(payload[NUMBERS]) == 10
    assert payload[COUNTS].dtype == torch.int64
