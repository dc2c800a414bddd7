"""A user's own questions and answers, through every command that takes data."""

import csv

import pytest
from run_files import write_rows
from tiny import save_tiny_bert, save_tiny_llama

from fedloom import read_run
from fedloom.commands.cli import main
from fedloom.data.sources import load_splits
from fedloom.data.tasks import TASKS

TOWNS = ["Paris", "Rome", "Oslo", "Bern", "Kyiv", "Riga"]


def rows(count):
    """Half of the answers are words, half have a number."""
    return [
        {
            "question": f"Question {i}: which town is it, and how far?",
            "answer": TOWNS[i % 6] if i % 2 else f"It is {i} km to {TOWNS[i % 6]}.",
            "label": TOWNS[i % 3],
        }
        for i in range(count)
    ]


def jsonl(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, content)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def fed(model, data, out_dir, *flags):
    words = f"fed --model_name {model} --data_name qa --data_dir {data} --out_dir {out_dir} --train_mode fed"
    words += " --client_num 4 --client_num_per_step 2 --client_batch_per_step 2 --max_steps 2 --val_steps 1"
    return main([*words.split(), "--dtype", "float32", "--lr", "0.01", "--report_to", "none", *flags])


def dfl(model, out_dir, *flags):
    words = (
        f"dfl --model_checkpoint {model} --dataset_type qa --out_dir {out_dir} --num_clients 3 --name ring"
    )
    words += " --num_rounds 1 --local_steps 1 --batch_size 4 --dtype float32 --report_to none"
    return main([*words.split(), *flags])


def load(path):
    return load_splits(TASKS["qa"], data_dir=path, seed=1, token=None)


def test_answers_may_be_anything_and_labels_too(tmp_path):
    content = [
        {"question": " Where? ", "answer": "Rome", "label": 0},
        {"question": "How far?", "answer": 12, "label": "far"},
        {"question": "How long?", "answer": 18.0, "label": 1.0},
        {"question": "Who?", "answer": "It is 5 km.", "label": float("nan")},
        {"question": 5, "answer": "5", "label": False},
    ]
    every = vars(load(jsonl(tmp_path / "qa.jsonl", content * 2))).values()
    assert {(made.question, made.answer, made.final, made.label) for part in every for made in part} == {
        ("Where?", "Rome", "Rome", "0"),
        ("How far?", "12", "12", "far"),
        ("How long?", "18", "18", "1"),
        ("Who?", "It is 5 km.", "It is 5 km.", ""),
        ("5", "5", "5", "False"),
    }


def test_one_file_is_cut_in_three_and_given_splits_stay(tmp_path):
    one = load(jsonl(tmp_path / "one.jsonl", rows(40)))
    assert [len(part) for part in (one.train, one.validation, one.test)] == [24, 8, 8]
    assert {made.question for made in one.train}.isdisjoint(made.question for made in one.validation)
    jsonl(tmp_path / "all" / "train.jsonl", rows(20))
    jsonl(tmp_path / "all" / "test.jsonl", rows(3))
    parts = load(tmp_path / "all")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [18, 2, 3]


def test_a_federation_learns_from_one_jsonl_file(model, tmp_path):
    assert fed(model, jsonl(tmp_path / "mine.jsonl", rows(40)), tmp_path) == 0
    run = read_run(tmp_path / "test")
    assert run.rows[-1]["val_loss"] < run.rows[0]["val_loss"]
    assert run.options["data_name"] == "qa"


def test_a_csv_file_will_do_as_well(model, tmp_path):
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "label"])
        writer.writeheader()
        writer.writerows(rows(20))
    assert fed(model, tmp_path / "mine.csv", tmp_path, "--max_steps", "1") == 0


def test_peers_share_a_file_or_bring_their_own(model, tmp_path):
    mine = jsonl(tmp_path / "mine.jsonl", rows(40))
    shared = ("--data_dir", str(mine), "--partition", "dirichlet")
    assert dfl(model, tmp_path, "--exp_name", "shared", *shared) == 0
    for peer in (1, 2, 3):
        jsonl(tmp_path / f"client_{peer}.jsonl", rows(4 + peer))
    own = ("--dataset_path_template", f"{tmp_path}/client_{{i}}.jsonl")
    judged = ("--val_dataset_path_template", str(mine))
    assert dfl(model, tmp_path, "--exp_name", "own", *own, *judged) == 0
    assert len(read_run(tmp_path / "own").rows[-1]["peer_val_loss"]) == 3


def test_split_and_view_go_by_the_labels_that_rows_have(tmp_path, capsys):
    mine = jsonl(tmp_path / "mine.jsonl", rows(30))
    words = f"split --data_name qa --data_dir {mine} --num_clients 2 --output_path {tmp_path}/clients"
    assert main([*words.split(), "--partition", "shards", "--labels_per_client", "2"]) == 0
    capsys.readouterr()
    assert main(["view", f"{tmp_path}/clients"]) == 0
    shown = capsys.readouterr().out
    assert "Paris" in shown and "Oslo" in shown and "18" in shown


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"prompt": "a", "response": "b"}], ["line 1", "no known format", "'prompt', 'response'"]),
        ([{"question": "a", "answer": " "}], ["line 1", "'answer' is empty"]),
        ([{"question": "a \ud83d", "answer": "b"}], ["line 1: field 'question'", "an emoji was cut in two"]),
        ([{"question": "a", "answer": ["b"]}], ["line 1", "'answer' must be text or a number", "['b']"]),
        ([{"question": "a", "answer": "b"}, {"question": "a", "answer": float("nan")}], ["line 2", "(nan)"]),
        ([{"question": "a", "answer": "b"}] * 2, ["2 training examples are too few", "at least 3"]),
        ([{"question": "a", "answer": "b"}] * 5, ["client_num is 4", "only 3 training examples"]),
    ],
)
def test_a_mistake_in_the_data_is_told_with_its_place(model, tmp_path, capsys, content, words):
    assert fed(model, jsonl(tmp_path / "mine.jsonl", content), tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("fedloom: error:") and all(word in said for word in words), said


def test_own_data_must_be_given(model, tmp_path, capsys):
    assert main(["fed", "--model_name", str(model), "--data_name", "qa", "--out_dir", str(tmp_path)]) == 2
    assert "data_dir: qa is data of your own" in capsys.readouterr().err
    assert dfl(model, tmp_path) == 2
    assert "give a folder with train.jsonl" in capsys.readouterr().err
    for peer in (1, 2, 3):
        jsonl(tmp_path / f"client_{peer}.jsonl", rows(4))
    assert dfl(model, tmp_path, "--dataset_path_template", f"{tmp_path}/client_{{i}}.jsonl") == 2
    assert "val_dataset_path_template: is needed" in capsys.readouterr().err


def test_an_encoder_writes_no_answers(tmp_path, capsys):
    encoder = save_tiny_bert(tmp_path / "model")
    assert dfl(encoder, tmp_path, "--data_dir", str(jsonl(tmp_path / "mine.jsonl", rows(40)))) == 2
    assert "does not write answers" in capsys.readouterr().err
