"""`--data_seed`: runs of several seeds and their base are judged by rows that nobody trained on."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny_llama

from fedloom.commands.cli import main

ROWS = [{"question": f"What is {i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(50)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One file, of which 30 rows train, 10 validate, 10 are the test."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def train(model, data, tmp_path_factory):
    """Runs `fedloom fed` or `dfl` under a name, once; returns the run's folder."""
    out = tmp_path_factory.mktemp("runs")

    def run(command, name, *flags):
        if not (out / name).exists():
            own = {
                "fed": "--client_num 3 --client_num_per_step 2 --train_mode fed --grad_accum_steps 1",
                "dfl": "--num_clients 3 --name ring",
            }[command]
            words = f"{command} --model_name {model} --data_name qa --data_dir {data} --out_dir {out} {own}"
            words += f" --exp_name {name} --max_steps 1 --client_batch_per_step 1 --batch_size 2 --lora_r 2"
            words += " --val_steps 1 --dtype float32 --report_to none"
            assert main([*words.split(), *map(str, flags)]) == 0
        return out / name

    return run


def judged(output, *words):
    """The prompts that `fedloom eval` judges by."""
    words = ["eval", "--dtype", "float32", "--max_new_tokens", 2, "--output_path", output, *words]
    assert main([*map(str, words)]) == 0
    lines = (Path(output) / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def numbers(run):
    content = yaml.safe_load((run / "config.yaml").read_text())
    return content["run"]["inputs"], content["data_seed"]


def test_runs_of_several_seeds_and_the_base_are_judged_by_the_same_rows(train, model, data, tmp_path, caplog):
    runs = [train("fed", name, "--seed", seed) for name, seed in (("one", 1), ("two", 2))]
    runs.append(train("dfl", "peers", "--seed", 3))
    inputs = [numbers(run)[0] for run in runs]
    assert len({found["validation data"] for found in inputs}) == 1
    assert inputs[0]["training data"] == inputs[1]["training data"]
    base = judged(tmp_path / "base", "--model_name", model, "--data_name", "qa", "--data_dir", data)
    assert len(base) == 10
    together = judged(tmp_path / "runs", "--adapter", f"{runs[0]},{runs[1]}")
    assert together == base * 2
    assert judged(tmp_path / "peers", "--adapter", runs[2]) == base * 3
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_another_data_seed_holds_out_other_rows_which_eval_takes_from_the_run(train, model, data, tmp_path):
    run = train("fed", "other", "--data_seed", 7)
    assert numbers(run)[1] == 7
    own = judged(tmp_path / "own", "--adapter", run)
    base = ("--model_name", model, "--data_name", "qa", "--data_dir", data)
    assert own == judged(tmp_path / "base", *base, "--data_seed", 7)
    assert own == judged(tmp_path / "base", *base, "--seed", 7), "the other name of an option of eval"
    assert set(own) != set(judged(tmp_path / "base", *base))


def test_rows_that_a_run_trained_on_are_left_out(train, data, tmp_path, caplog):
    run = train("fed", "other", "--data_seed", 7)
    seen = judged(tmp_path / "train", "--adapter", run, "--split", "train")
    assert len(seen) == 30, "asked for, they are judged"
    left = judged(tmp_path / "left", "--adapter", run, "--data_seed", 3407)
    assert 0 < len(left) < 10 and not set(left) & set(seen)
    assert f"other trained on {10 - len(left)} of 10 examples of test, which are left out" in caplog.text
    assert "--data_seed 7 and its own data" in caplog.text
    assert judged(tmp_path / "named", "--adapter", run, "--data_name", data, "--data_seed", 3407) == left


@pytest.mark.parametrize("command", ["fed", "dfl"])
def test_clients_folders_have_none_of_what_eval_judges_by(train, data, tmp_path, caplog, command):
    words = f"split --data_name qa --data_dir {data} --num_clients 3 --partition quantity --output_path"
    assert main([*words.split(), str(tmp_path / "clients")]) == 0
    folders = ["--dataset_path_template", tmp_path / "clients" / "client_{i}"]
    folders += ["--val_dataset_path_template", tmp_path / "clients" / "validation"]
    run = train(command, f"folders-{command}", *folders)
    assert len(set(judged(tmp_path / "eval", "--adapter", run))) == 10
    assert "left out" not in caplog.text


def test_a_run_on_whole_folders_has_nothing_left_to_be_judged_by(train, data, tmp_path, capsys):
    for client in (1, 2, 3):
        (tmp_path / f"{client}.jsonl").write_text(data.read_text())
    run = train(
        "fed", "whole", "--dataset_path_template", tmp_path / "{i}.jsonl", "--val_dataset_path_template", data
    )
    assert main(["eval", "--adapter", str(run), "--output_path", str(tmp_path / "eval")]) == 2
    assert "split: whole trained on all 10 examples of test" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fed", "dfl"])
def test_a_run_on_the_first_rows_is_judged_by_what_was_held_out_of_them(train, tmp_path, caplog, command):
    run = train(command, f"few-{command}", "--train_limit", 20)
    content = yaml.safe_load((run / "config.yaml").read_text())
    assert content["train_limit"] == 20
    assert content["run"]["inputs"]["training data"].startswith("12 examples")
    own = set(judged(tmp_path / "own", "--adapter", run))
    firsts = [row["question"] for row in ROWS[:20]]
    assert len(own) == 4 and all(any(first in prompt for first in firsts) for prompt in own)
    assert "left out" not in caplog.text
    of_all = set(judged(tmp_path / "all", "--adapter", run, "--train_limit", 50))
    assert f"few-{command} trained on" in caplog.text and len(of_all) < 10


@pytest.mark.parametrize("command", ["fed", "dfl"])
def test_validation_is_cut_to_a_limit(train, command):
    whole, cut = train(command, f"whole-{command}"), train(command, f"cut-{command}", "--val_limit", 2)
    first = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (whole, cut)]
    assert first[0]["val_loss"] != first[1]["val_loss"]


@pytest.mark.parametrize("command", ["fed", "dfl", "peer", "flower"])
def test_a_limit_is_one_example_at_least(capsys, command):
    assert main([command, "--val_limit", "0"]) == 2
    assert "val_limit: 0 is not a whole number of at least 1" in capsys.readouterr().err
