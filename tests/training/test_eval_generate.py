"""`eval_generate_every`: answers that the model writes itself while it trains, from the command line."""

import json

import pytest
from run_files import rows
from tiny import save_tiny_bert, save_tiny_llama, tiny_tokenizer

from fedloom.commands.cli import main


def problems(count, offset):
    rows = [{"question": f"What is {i + offset} + 1?", "answer": f"#### {i % 2}"} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 40), ("validation", 8), ("test", 4)):
        (folder / f"{split}.jsonl").write_text(problems(count, len(split)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def fed(model, data, out, *flags):
    words = f"fed --model_name {model} --data_name gsm8k --data_dir {data} --out_dir {out} --exp_name run"
    words += " --train_mode fed --client_num 4 --client_num_per_step 2 --client_batch_per_step 2 --lora_r 4"
    words += " --lr 0.05 --client_lr 0.5 --val_steps 5 --report_to none --dtype float32 --patience 0"
    return main([*words.split(), *flags])


def dfl(model, data, out, *flags):
    words = f"dfl --model_checkpoint {model} --dataset_type gsm8k --data_dir {data} --out_dir {out}"
    words += " --exp_name run --num_clients 3 --name ring --num_rounds 4 --batch_size 8 --lr 0.02"
    words += " --report_to none --dtype float32 --eval_every 3"
    return main([*words.split(), *flags])


def judged(out, limit):
    words = f"eval --adapter {out / 'run'} --split validation --limit {limit} --output_path {out / 'eval'}"
    # A run lets answers be twice as long as the longest given one, its end token included.
    given = len(tiny_tokenizer()("#### 0").input_ids) + 1
    assert main([*words.split(), "--max_new_tokens", str(2 * given)]) == 0
    adapters = json.loads((out / "eval" / "eval.json").read_text())["adapters"]
    return [each["accuracy"] for each in adapters]


EVERY_TWO = ("--eval_generate_every", "2", "--eval_generate_limit", "6", "--max_steps", "5")


def test_every_so_many_rounds_and_at_the_end_the_server_answers(model, data, tmp_path):
    assert fed(model, data, tmp_path, *EVERY_TWO) == 0
    found = rows(tmp_path / "run")
    assert [row["round"] for row in found if "val_answer_accuracy" in row] == [0, 2, 4, 5]
    assert all(row["eval_seconds"] > 0 for row in found if "val_answer_accuracy" in row)
    assert "val_loss" not in found[2] and "val_loss" in found[5]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    last = found[-1]["val_answer_accuracy"]
    assert summary["final"]["val_answer_accuracy"] == {"value": last, "round": 5}


def test_answers_change_nothing_and_survive_a_resume(model, data, tmp_path):
    whole, plain, resumed = (tmp_path / name for name in ("whole", "plain", "resumed"))
    assert fed(model, data, whole, *EVERY_TWO) == 0
    assert fed(model, data, plain, "--max_steps", "5") == 0
    assert fed(model, data, resumed, *EVERY_TWO, "--val_steps", "3", "--max_steps", "3") == 0
    again = ["--resume", "--val_steps", "3", "--max_steps", "5"]
    assert fed(model, data, resumed, *EVERY_TWO[:4], *again) == 0
    answers = [
        {row["round"]: row.get("val_answer_accuracy") for row in rows(out / "run") if row["round"] != 3}
        for out in (whole, resumed)
    ]
    assert answers[0] == answers[1]
    losses = [[row.get("train_loss") for row in rows(out / "run")] for out in (whole, plain, resumed)]
    assert losses[0] == losses[1] == losses[2]
    assert not any("val_answer_accuracy" in row for row in rows(plain / "run"))


def test_peers_answer_each_for_itself(model, data, tmp_path):
    assert dfl(model, data, tmp_path, "--eval_generate_every", "2", "--eval_generate_limit", "5") == 0
    found = {row["round"]: row for row in rows(tmp_path / "run")}
    assert [number for number, row in found.items() if "val_answer_accuracy" in row] == [0, 2, 4]
    own = found[4]["peer_val_answer_accuracy"]
    assert len(own) == 3 and found[4]["val_answer_accuracy"] == pytest.approx(sum(own) / 3)


def test_what_a_run_says_is_what_eval_finds(model, data, tmp_path):
    learns = ("--eval_generate_every", "20", "--target_modules", "all-linear", "--lora_dropout", "0")
    assert fed(model, data, tmp_path / "fed", *learns, "--lr", "0.01", "--max_steps", "14") == 0
    assert dfl(model, data, tmp_path / "dfl", *learns, "--lr", "0.02", "--num_rounds", "8") == 0
    (server,), peers = judged(tmp_path / "fed", 64), judged(tmp_path / "dfl", 64)
    assert server == rows(tmp_path / "fed" / "run")[-1]["val_answer_accuracy"] > 0
    assert peers == rows(tmp_path / "dfl" / "run")[-1]["peer_val_answer_accuracy"] and max(peers) > 0


def test_a_classifier_writes_no_answers(tmp_path, capsys):
    encoder = save_tiny_bert(tmp_path / "model")
    words = f"dfl --model_checkpoint {encoder} --dataset_type arithmetic --out_dir {tmp_path} --num_clients 3"
    assert main([*words.split(), "--name", "ring", "--eval_generate_every", "1"]) == 2
    assert "eval_generate_every" in capsys.readouterr().err
