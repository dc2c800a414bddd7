"""A user's own formats through every command that reads data."""

import json

import pytest
import torch
from tiny import save_tiny_bert, save_tiny_llama

from fedloom import read_run
from fedloom.commands.cli import main
from fedloom.model import precision

TOWNS = ["Paris", "Rome", "Oslo"]


def talks(count):
    """Two questions each, every other conversation with a system prompt of its own."""
    return [
        {
            "messages": [
                *([{"role": "system", "content": f"Be {TOWNS[i % 3]}."}] if i % 2 else []),
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": TOWNS[i % 3]},
                {"role": "user", "content": "Again?"},
                {"role": "assistant", "content": f"Yes, {TOWNS[i % 3]}."},
            ],
            "label": TOWNS[i % 3],
        }
        for i in range(count)
    ]


def films(count):
    return [{"review": f"film {i} is {'fine' if i % 2 else 'bad'}", "stars": i % 2} for i in range(count)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def fed(model, data, out, *flags):
    words = f"fed --model_name {model} --data_name {data} --out_dir {out} --train_mode fed --client_num 2"
    words += " --client_num_per_step 2 --client_batch_per_step 2 --max_steps 2 --val_steps 1 --dtype float32"
    return main([*words.split(), "--lr", "0.01", "--report_to", "none", *flags])


def dfl(model, data, out, *flags):
    words = f"dfl --model_checkpoint {model} --dataset_type {data} --out_dir {out} --num_clients 2"
    words += " --name complete --num_rounds 1 --local_steps 1 --batch_size 4 --dtype float32 --report_to none"
    return main([*words.split(), *flags])


def test_a_federation_learns_conversations_and_answers_their_last_question(model, tmp_path, capsys):
    mine = jsonl(tmp_path / "talks.jsonl", talks(40))
    flags = ("--partition", "dirichlet", "--eval_generate_every", "1", "--eval_generate_limit", "2")
    assert fed(model, mine, tmp_path, *flags) == 0
    assert "talks.jsonl: format messages, from the columns messages" in capsys.readouterr().out
    run = read_run(tmp_path / "test")
    assert run.rows[-1]["val_loss"] < run.rows[0]["val_loss"]
    assert "val_answer_accuracy" in run.rows[-1]
    assert main(["eval", "--adapter", str(tmp_path / "test"), "--limit", "2", "--max_new_tokens", "8"]) == 0
    (written, *_) = map(json.loads, (tmp_path / "test" / "eval" / "predictions.jsonl").open())
    prompt = (
        f"{written['expected'][5:-1]}<|im_end|>\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert written["prompt"].endswith(prompt), "the conversation so far"
    assert fed(model, mine, tmp_path, "--resume", "--max_steps", "3") == 0


def test_long_answers_are_judged_by_their_loss_in_the_dtype_of_their_run(
    model, tmp_path, capsys, monkeypatch
):
    rows = [{"prompt": f"Tell me {i}.", "completion": f"Once upon a time {i}. " * 8} for i in range(20)]
    assert fed(model, jsonl(tmp_path / "tales.jsonl", rows), tmp_path, "--max_steps", "1") == 0
    capsys.readouterr()
    monkeypatch.setattr(precision, "_cpu_dtype", lambda hidden, intermediate: torch.bfloat16)  # faster now
    assert main(["eval", "--adapter", str(tmp_path / "test"), "--split", "validation"]) == 0
    assert "tokens right" in capsys.readouterr().out
    (scores,) = json.loads((tmp_path / "test/eval/eval.json").read_text())["adapters"]
    assert scores["loss"] == pytest.approx(read_run(tmp_path / "test").rows[-1]["val_loss"], rel=1e-5)
    base = f"eval --model_name {model} --data_name {tmp_path}/tales.jsonl --output_path {tmp_path}/base"
    assert main([*base.split(), "--split", "validation", "--dtype", "float32"]) == 0
    (scores,) = json.loads((tmp_path / "base/eval.json").read_text())["adapters"]
    assert scores["loss"] == pytest.approx(read_run(tmp_path / "test").rows[0]["val_loss"], rel=1e-5)
    assert scores["n"] == 4 and main(["report", str(tmp_path / "test"), "-o", str(tmp_path / "r.html")]) == 0


def test_texts_and_other_formats_train(model, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("".join(f"{i} and {i + 1} make {2 * i + 1}.\n" for i in range(20)))
    assert fed(model, words, tmp_path, "--exp_name", "text", "--max_steps", "1") == 0
    rows = [{"instr": f"Add {i}", "out": f"{i + 1}"} for i in range(20)]
    columns = ("--columns", "instruction=instr,output=out")
    assert fed(model, jsonl(tmp_path / "a.jsonl", rows), tmp_path, "--exp_name", "alpaca", *columns) == 0
    assert dfl(model, tmp_path / "a.jsonl", tmp_path, "--exp_name", "dfl", *columns) == 0


def test_own_labels_are_classified_or_written(model, tmp_path, capsys):
    mine = jsonl(tmp_path / "films.jsonl", films(24))
    columns = ("--columns", "text=review,label=stars")
    encoder = save_tiny_bert(tmp_path / "encoder")
    assert dfl(encoder, mine, tmp_path, "--exp_name", "classes", *columns) == 0
    assert "format classification, from the columns text = review, label = stars; 2 classes: 0, 1" in (
        capsys.readouterr().out
    )
    assert main(["eval", "--adapter", str(tmp_path / "classes"), "--output_path", str(tmp_path / "e")]) == 0
    assert {row["expected"] for row in map(json.loads, (tmp_path / "e/predictions.jsonl").open())} <= {
        "0",
        "1",
    }
    assert fed(model, mine, tmp_path, "--exp_name", "words", *columns) == 0
    words = ("--adapter", str(tmp_path / "words"), "--max_new_tokens", "4")
    assert main(["eval", *words, "--output_path", str(tmp_path / "w")]) == 0
    assert json.loads((tmp_path / "w/eval.json").read_text())["adapters"][0]["n"] == 4


@pytest.mark.parametrize("rows, labels", [(talks(24), TOWNS), (films(24), ["0", "1"])])
def test_split_writes_folders_that_are_read_as_the_data_were(model, tmp_path, capsys, rows, labels):
    mine = jsonl(tmp_path / "mine.jsonl", rows)
    columns = ["--columns", "text=review,label=stars"] if "review" in rows[0] else []
    words = f"split --data_name {mine} --num_clients 2 --partition iid --output_path {tmp_path}/clients"
    assert main([*words.split(), *columns]) == 0
    assert main(["view", f"{tmp_path}/clients"]) == 0
    shown = capsys.readouterr().out.rpartition("client_1")
    assert all(label in shown[0] for label in labels) and "client_2" in shown[2]
    own = ("--dataset_path_template", f"{tmp_path}/clients/client_{{i}}")
    judged = ("--val_dataset_path_template", str(mine))
    assert fed(model, "qa", tmp_path, *own, *judged, *columns, "--max_steps", "1") == 0
    peer = save_tiny_bert(tmp_path / "encoder") if columns else model
    assert dfl(peer, "qa", tmp_path, "--exp_name", "dfl", *own, *judged, *columns) == 0
