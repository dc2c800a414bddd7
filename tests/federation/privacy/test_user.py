"""User-level privacy: clipping, noise, who takes part, and the fixed denominator, on numbers made by hand."""

import math
from dataclasses import replace

import pytest
import torch
from updates import update_by

from fedloom.federation.algorithm import Algorithm
from fedloom.federation.codecs.int8 import int8
from fedloom.federation.privacy.user import UserPrivacy, clipped
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.update import decode_update, encode_update
from fedloom.model.bank import norm_of

START = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
PRIVACY = UserPrivacy(clip=2.0, quantile=None, noise=0.0, clients=10, per_round=4, key=1)


def sends(client, number, examples=1, **more):
    return update_by(client, {n: torch.full_like(t, number) for n, t in START.items()}, examples, **more)


def round_of(*updates, privacy=PRIVACY, start=START, **parts):
    algorithm = Algorithm(0.1, privacy=privacy, **parts)
    state = initial_state(start, algorithm)
    clients = [update.client for update in updates]
    return federated_round(state, clients, lambda *_: iter(updates), algorithm, of=10)


def test_a_change_is_clipped_by_its_norm_over_all_parameters():
    row = {"a": torch.full((3,), 3.0), "b": torch.full((2, 2), -3.0)}
    cut, within = clipped(row, 2.0)
    assert not within and norm_of(cut) == pytest.approx(2.0, rel=1e-5) and norm_of(cut) <= 2.0
    assert torch.allclose(cut["a"] / 3, -cut["b"][0, 0] / 3)
    assert clipped(cut, 2.0) == (cut, True)
    assert clipped(row, math.inf) == (row, True)


def test_the_sum_is_divided_by_a_fixed_number_and_clients_count_alike():
    small, large = sends(2, 0.1, examples=7), sends(5, 100.0, examples=1)
    after, report = round_of(small, large)
    bound = 2.0 / math.sqrt(7)  # seven parameters of equal size
    assert torch.allclose(after.adapter["a"], torch.full((3,), (0.1 + bound) / 4), atol=1e-5)
    # What goes over the wire is told for as many as come on average.
    assert report.bytes_up == report.bytes_down == 4 * 7 * 4


def test_an_empty_round_counts():
    after, report = round_of()
    assert after.round == 1 and report.updates == [] and torch.equal(after.adapter["a"], START["a"])
    noised, _ = round_of(privacy=replace(PRIVACY, noise=1.0))
    assert noised.round == 1 and norm_of(noised.adapter) > 0


def test_one_client_without_finite_numbers_adds_nothing_and_stops_nobody():
    bad = sends(1, math.nan)
    after, report = round_of(bad, sends(2, 0.1))
    assert report.left_out == [1] and torch.allclose(after.adapter["a"], torch.tensor(0.1 / 4))
    alone, _ = round_of(bad)
    assert alone.round == 1 and torch.equal(alone.adapter["a"], START["a"])


def test_the_noise_is_gaussian_on_the_sum():
    start = {"w": torch.zeros(200_000)}
    privacy = replace(PRIVACY, noise=1.5)
    after, _ = round_of(privacy=privacy, start=start)
    w = after.adapter["w"].double()
    std = 1.5 * 2.0 / 4
    assert float(w.std()) == pytest.approx(std, rel=0.01) and abs(float(w.mean())) < 4 * std / 200_000**0.5
    kurtosis = float(((w / w.std()) ** 4).mean())
    assert kurtosis == pytest.approx(3.0, abs=0.05)
    share = float((w.abs() > 1.96 * std).double().mean())
    assert share == pytest.approx(0.05, abs=0.003)


def test_the_noise_is_a_function_of_key_and_round():
    def noise(key, round_):
        zeros = {"w": torch.zeros(4)}
        return replace(PRIVACY, noise=1.0, key=key).noised(zeros, 2.0, round_)["w"].tolist()

    assert noise(1, 0) == noise(1, 0)
    assert len({tuple(noise(key, round_)) for key in (1, 2**255 + 1) for round_ in (0, 1)}) == 4


def test_each_client_takes_part_by_itself():
    privacy = replace(PRIVACY, clients=50, per_round=5)
    rounds = [privacy.sample(r) for r in range(400)]
    counts = torch.tensor([len(r) for r in rounds]).double()
    # Binomial(50, 0.1): mean 5, variance 4.5; a fixed number of clients would have none.
    assert float(counts.mean()) == pytest.approx(5, abs=0.4)
    assert float(counts.var()) == pytest.approx(4.5, abs=1.2)
    assert rounds[7] == privacy.sample(7) and rounds[7] != rounds[8]
    assert replace(privacy, per_round=50).sample(3) == list(range(50))
    assert any(not replace(privacy, per_round=1).sample(r) for r in range(20))


def test_the_server_clips_what_a_sender_has_not_and_what_a_codec_has_rounded_up():
    for codec in (None, int8()):
        algorithm = Algorithm(0.1, privacy=PRIVACY, **({"codec": codec} if codec else {}))
        delta = {"a": torch.tensor([5.0, 1.0, -3.0]), "b": torch.ones(2, 2)}
        for bound in (math.inf, 2.0):  # at the sender: not at all, or as it should
            payload, _ = encode_update(algorithm, 0, delta, {}, {}, seed=3, clip=bound)
            sent, _ = decode_update(algorithm, 0, payload, START)
            assert norm_of(sent) > 2.0 if bound == math.inf else norm_of(sent) < 2.1
            update = replace(sends(0, 0.0), payload=payload)
            after, _ = round_of(update, codec=algorithm.codec)
            assert norm_of(after.adapter) * 4 == pytest.approx(2.0, rel=0.05)
            assert norm_of(after.adapter) * 4 <= 2.0


def test_an_adaptive_clip_goes_to_the_norm_that_holds_the_share():
    privacy = UserPrivacy(0.1, 0.5, noise=1.0, clients=100, per_round=100, key=5)
    algorithm = Algorithm(0.1, privacy=privacy)
    state, norms = initial_state(START, algorithm), torch.linspace(1, 5, 100)
    for _ in range(60):

        def train(round_, clients, trained, rest, kept, clip=state.clip):
            for k in clients:
                delta = {n: t + float(norms[k]) / math.sqrt(7) for n, t in START.items()}
                payload, _ = encode_update(algorithm, k, delta, {}, {}, seed=0, clip=clip)
                yield replace(sends(k, 0.0), payload=payload)

        state, _ = federated_round(state, list(range(100)), train, algorithm)
    assert state.clip == pytest.approx(3.0, rel=0.15)  # the median


def test_the_first_step_of_an_adaptive_clip_is_the_papers():
    privacy = UserPrivacy(1.0, 0.7, noise=0.0, clients=10, per_round=4, key=1)
    # Three came, one within: b = ½ + (1 − 3 / 2) / 4.
    assert privacy.next_clip(1.0, 3, 1, 0) == pytest.approx(math.exp(-0.2 * (0.375 - 0.7)))
