"""Example-level privacy: which examples a step draws, and its noise."""

import random

import numpy as np
import pytest
import torch
from engine import apart, make_stacked, moved, random_sequence, start_bank
from peft import LoraConfig
from tiny import tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.client.private import ExamplePrivacy
from fedloom.client.work import Schedule, plan_work
from fedloom.model.layout import Layout


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


def test_private_training_does_not_depend_on_the_size_of_a_pass():
    model = make_stacked(
        tiny_llama().double(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    )
    rng = random.Random(0)
    data = [random_sequence(rng) for _ in range(12)]
    privacy = ExamplePrivacy(clip=0.5, noise=1.0, key=3)
    schedule = Schedule(batches=3, batch_size=2)
    work = [
        plan_work(
            data,
            np.arange(6) + 6 * k,
            schedule,
            model.layout,
            seed=0,
            client=k,
            round_=1,
            drawn=0,
            privacy=privacy,
        )
        for k in range(2)
    ]
    assert {len(step) for one in work for step in one.steps} >= {1, 2}  # Poisson, not batches of two
    found = []
    for wave_tokens in (1, 4096):
        rules = LocalRules(sgd(0.1), privacy=privacy, wave_tokens=wave_tokens)
        noised = [one.noised for one in work]
        steps = [one.steps for one in work]
        result = train_locally(model, start_bank(model, 2), steps, rules, noised=noised)
        assert result.loss.tolist() == [0.0, 0.0] and result.tokens.tolist() == [0, 0]  # nothing is told
        found.append(result.bank)
    for k in range(2):
        assert apart(found[0].row(k), found[1].row(k)) <= 1e-12 and moved(found[0].row(k), model.initial)


def test_an_examples_dropout_is_its_own_whoever_is_drawn_beside_it():
    """By its place in the step, one example more would change the masks of all behind it."""
    rng, layout = random.Random(0), Layout(packed=True, causal=True)
    data = [random_sequence(rng) for _ in range(12)]
    found: dict[int, set[int]] = {}
    for key in range(8):
        privacy = ExamplePrivacy(1.0, 1.0, key)
        schedule, indices = Schedule(batches=1, batch_size=5), np.arange(12)
        work = plan_work(
            data, indices, schedule, layout, seed=1, client=0, round_=0, drawn=0, privacy=privacy
        )
        for batch in work.steps[0]:
            found.setdefault(data.index(batch.sequences[0]), set()).add(batch.key[-1])
    assert all(keys == {example} for example, keys in found.items()) and len(found) == 12
