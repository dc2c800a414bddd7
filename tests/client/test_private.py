"""Example-level privacy: which examples a step draws, and its noise."""

import pytest
import torch

from fedloom.client.private import ExamplePrivacy


def test_each_example_is_drawn_by_itself():
    privacy = ExamplePrivacy(1.0, 1.0, key=3)
    steps = [privacy.draw(40, 4, 0, step) for step in range(500)]
    counts = torch.tensor([len(step) for step in steps]).double()
    # Binomial(40, 0.1): mean 4, variance 3.6.
    assert float(counts.mean()) == pytest.approx(4, abs=0.4) and float(counts.var()) == pytest.approx(
        3.6, abs=1
    )
    assert [] in steps and steps[0] == privacy.draw(40, 4, 0, 0) != privacy.draw(40, 4, 1, 0)
    assert privacy.draw(3, 8, 0) == [0, 1, 2]  # a step takes more than there are


def test_the_noise_of_a_step_is_that_of_its_clip_over_what_it_takes_on_average():
    zeros = {"w": torch.zeros(50_000), "v": torch.zeros(50_000)}
    noised = ExamplePrivacy(clip=2.0, noise=1.5, key=3).noised(zeros, 8.0, 0, 1, 2)
    w = torch.cat([noised["w"], noised["v"]]).double()
    assert float(w.std()) == pytest.approx(2.0 * 1.5 / 8, rel=0.01)
    assert abs(float(w.mean())) < 4 * 0.375 / 100_000**0.5
    assert not torch.equal(noised["w"], noised["v"])
    quiet = ExamplePrivacy(clip=2.0, noise=0.0, key=3).noised({"w": torch.ones(3)}, 8.0, 0)
    assert quiet["w"].tolist() == [0.125] * 3
