"""People's own data: each format that docs/data.md names, recognised by its columns and read."""

import json
import re
from pathlib import Path
from typing import get_args

import datasets
import pytest

from fedloom.commands.cli import main
from fedloom.data.example import Example, Preference, Turn
from fedloom.data.own import open_task
from fedloom.data.sources import load_rows, load_splits
from fedloom.errors import UserError
from fedloom.options.own_data import DataFormat

USER, REPLY = Turn("user", "Which town?"), Turn("assistant", "Oslo")
SYSTEM = Turn("system", "Be brief.")
MESSAGES = [{"role": "user", "content": "Which town?"}, {"role": "assistant", "content": "Oslo"}]
LONG = " ".join(["word"] * 21)


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opened(path, **options):
    return open_task(str(path), **options)


def read(tmp_path, row, **options):
    """The format that a row is found to have, and the example that it makes."""
    task = opened(jsonl(tmp_path / "mine.jsonl", [row] * 3), **options)
    return task.data_format, load_rows(task, data_dir=None, seed=1, token=None)["train"][0].example


def talk(*turns, label=""):
    """What a conversation makes that ends in Oslo."""
    return Example("Which town?", "Oslo", "Oslo", label, turns=turns)


@pytest.mark.parametrize(
    ("row", "name", "example"),
    [
        ({"question": " a ", "answer": 12}, "question_answer", Example("a", "12", "12")),
        (
            {"prompt": "a", "completion": "b c", "label": "x"},
            "prompt_completion",
            Example("a", "b c", "b c", "x"),
        ),
        ({"prompt": "a", "completion": LONG}, "prompt_completion", Example("a", LONG, "")),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt_completion", talk(USER, REPLY)),
        ({"messages": MESSAGES}, "messages", talk(USER, REPLY)),
        ({"messages": json.dumps(MESSAGES), "prompt": "a"}, "messages", talk(USER, REPLY)),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES, MESSAGES[0]]},
            "messages",
            talk(SYSTEM, USER, REPLY),
        ),
        (
            {"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}, *MESSAGES]},
            "messages",
            talk(USER, Turn("assistant", "Oslo", False), USER, REPLY),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Which town?"}]},
                    MESSAGES[1],
                ]
            },
            "messages",
            talk(USER, REPLY),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Which town?"},
                    {"from": "gpt", "value": "Oslo"},
                ],
                "system": "Be brief.",
            },
            "sharegpt",
            talk(SYSTEM, USER, REPLY),
        ),
        ({"instruction": "Which town?", "output": "Oslo"}, "alpaca", talk(USER, REPLY)),
        (
            {"instruction": "Which", "input": "town?", "output": "Oslo", "text": "Below is …"},
            "alpaca",
            Example("Which\n\ntown?", "Oslo", "Oslo", turns=(Turn("user", "Which\n\ntown?"), REPLY)),
        ),
        ({"text": "All of it."}, "text", Example("", "All of it.", "", whole=True)),
        ({"prompt": "Which town?", "chosen": "Oslo", "rejected": "Rome"}, "preference", None),
    ],
)
def test_formats_are_recognised_by_their_columns(tmp_path, capsys, row, name, example):
    found, made = read(tmp_path, row)
    assert found == name
    pair = Preference((USER,), (REPLY,), (Turn("assistant", "Rome"),), texts=True)
    assert made == (example or pair.compared())
    assert f"mine.jsonl: format {name}, from the columns " in capsys.readouterr().out


def test_only_the_completion_of_a_prompt_with_answers_is_learned(tmp_path):
    prompt = [*MESSAGES, {"role": "user", "content": "And then?"}]
    _, made = read(tmp_path, {"prompt": prompt, "completion": MESSAGES[1:]})
    assert [turn.learned for turn in made.turns if turn.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "Rome"}]}, (USER,)),
        (
            {
                "prompt": "Which town?",
                "chosen": [{"role": "system", "content": "Be brief."}, *MESSAGES],
                "rejected": [
                    {"role": "system", "content": "Be brief."},
                    MESSAGES[0],
                    {"role": "assistant", "content": "Rome"},
                ],
                "messages": MESSAGES,
            },
            (SYSTEM, USER),
        ),
        (
            {
                "prompt": MESSAGES[:1],
                "chosen": MESSAGES[1:],
                "rejected": [{"role": "assistant", "content": "Rome"}],
            },
            (USER,),
        ),
    ],
)
def test_preferences_as_messages(tmp_path, row, prompt):
    _, made = read(tmp_path, row)
    assert made == Preference(prompt, (REPLY,), (Turn("assistant", "Rome"),)).compared()


def test_of_preferences_the_chosen_answers_alone_may_be_learned(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    mine = jsonl(tmp_path / "mine.jsonl", [row] * 9)
    task = opened(mine, data_format="prompt_completion", columns={"completion": "chosen"})
    assert load_splits(task, data_dir=None, seed=1, token=None).train[0] == Example("a", "b", "b")


FILM = {"review": "a fine film", "stars": 1, "idx": "7"}


@pytest.mark.parametrize(
    ("rows", "classes", "example"),
    [
        (
            [{"text": "good", "label": "pos", "title": "x"}, {"text": "bad", "label": "neg", "title": "y"}],
            ("neg", "pos"),
            Example("good", "pos", "pos", "pos"),
        ),
        (
            [
                {"sentence": "good", "label": 10, "idx": "1", "label_text": "ten"},
                {"sentence": "bad", "label": 9},
            ],
            ("9", "10"),
            Example("good", "10", "10", "10"),
        ),
        (
            [
                {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1.0},
                {"premise": "a", "label": "0"},
            ],
            ("0", "1"),
            Example("Premise: It rains.\nHypothesis: It is wet.", "1", "1", "1", ("It rains.", "It is wet.")),
        ),
        ([{"sentence": "good", "label": True}, {"sentence": "b", "label": False}], ("False", "True"), None),
    ],
)
def test_labelled_texts(tmp_path, rows, classes, example):
    rows[1] = rows[0] | rows[1]
    task = opened(jsonl(tmp_path / "mine.jsonl", rows * 2))
    assert (task.data_format, task.label_names) == ("classification", classes)
    made = load_rows(task, data_dir=None, seed=1, token=None)["train"][0].example
    assert example is None or made == example


def test_labels_of_a_class_label_have_its_names(tmp_path):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"sentence": ["good", "bad"] * 3, "label": [1, 0] * 3}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    task = opened(tmp_path / "saved")
    assert task.label_names == ("neg", "pos")
    assert load_rows(task, data_dir=None, seed=1, token=None)["train"][0].example.label == "pos"


def test_columns_under_other_names(tmp_path, capsys):
    row = {"instr": "a", "out": "b", "answer": "not this one"}
    columns = {"question": "instr", "answer": "out"}
    assert read(tmp_path, row, columns=columns) == ("question_answer", Example("a", "b", "b"))
    assert "question = instr, answer = out" in capsys.readouterr().out
    dolly = {"instruction": "Which", "context": "town?", "response": "Oslo", "category": "qa"}
    _, made = read(tmp_path, dolly, columns={"input": "context", "output": "response"})
    assert made.turns[0].text == "Which\n\ntown?"
    reviews = jsonl(tmp_path / "reviews.jsonl", [FILM, FILM | {"stars": 5}] * 2)
    assert opened(reviews, columns={"text": "review", "label": "stars"}).label_names == ("1", "5")


def test_a_known_data_set_in_other_columns(tmp_path):
    rows = [{"q": "1 + 1?", "answer": "#### 2"}] * 3
    task = open_task("gsm8k", columns={"question": "q"})
    (made, *_) = load_splits(task, data_dir=jsonl(tmp_path / "mine.jsonl", rows), seed=1, token=None).train
    assert (made.question, made.final) == ("1 + 1?", "2")


BAD_ROLE = [{"role": "person", "content": "5"}]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"prompt": "a", "response": "b"},
            {},
            "columns are 'prompt', 'response', which make no known format",
        ),
        ({"messages": [{"role": "user", "content": " "}, MESSAGES[1]]}, {}, "message 1: 'content' is empty"),
        (
            {"messages": [*MESSAGES, *BAD_ROLE]},
            {},
            "message 3 has the role 'person'; it must be system, user or",
        ),
        ({"messages": [{"content": "a"}]}, {}, "message 1 must have 'role' and 'content'"),
        ({"messages": "hello"}, {}, "field 'messages' must be a list of messages"),
        ({"messages": []}, {}, "field 'messages' is empty"),
        ({"messages": [MESSAGES[0]]}, {}, "none of the 3 rows belongs"),
        ({"prompt": "a", "completion": "b", "label": True}, {}, "unpaired preferences"),
        ({"sentence": "a", "label": 0.5}, {}, "field 'label' is 0.5, which is no class"),
        ({"sentence": "a", "label": None}, {}, "field 'label' is empty, and a class is needed"),
        ({"sentence": "a", "label": "x"}, {}, "labels has 1 different values"),
        ({"n": 1, "label": 0}, {}, "of which none holds the text to classify"),
        (
            {"question": "a"},
            {"data_format": "alpaca"},
            "no field 'instruction', which the format alpaca needs",
        ),
        (
            {"a": "b"},
            {"columns": {"question": "q"}},
            "line 1 has no column 'q'; it has 'a'",
        ),
    ],
)
def test_rows_of_another_form_are_told_with_their_place(tmp_path, row, options, message):
    with pytest.raises(UserError, match=rf"mine\.jsonl.*{message}"):
        read(tmp_path, row, **options)


def test_rows_without_an_answer_are_counted_and_left_out(tmp_path, caplog):
    rows = [{"messages": MESSAGES}, {"messages": MESSAGES[:1]}, {"messages": MESSAGES}]
    task = opened(jsonl(tmp_path / "mine.jsonl", rows))
    assert len(load_rows(task, data_dir=None, seed=1, token=None)["train"]) == 2
    assert "1 of 3 rows have nothing to learn" in caplog.text


def test_files_of_any_names(tmp_path, capsys):
    rows = [{"question": f"{i}?", "answer": "b"} for i in range(4)]
    for part in range(3):
        jsonl(tmp_path / "parts" / f"mine_{part}.jsonl", rows)
    (tmp_path / "words.txt").write_text("one\n\ntwo\nthree\n")
    everything = load_rows(opened(tmp_path / "parts"), data_dir=None, seed=1, token=None)
    assert len(everything["train"]) == 12
    some = load_rows(opened(tmp_path / "parts" / "mine_[01].jsonl"), data_dir=None, seed=1, token=None)
    assert len(some["train"]) == 8 and list(some) == ["train"]
    lines = load_rows(opened(tmp_path / "words.txt"), data_dir=None, seed=1, token=None)["train"]
    assert [made.example.answer for made in lines] == ["one", "two", "three"]
    for split in ("train", "test"):
        jsonl(tmp_path / "split" / f"{split}.jsonl", rows)
    both = load_splits(opened(tmp_path / "split" / "*.jsonl"), data_dir=None, seed=5, token=None)
    assert [len(part) for part in (both.train, both.validation, both.test)] == [3, 1, 4]
    assert "held out of 4 training examples, drawn by seed 5: 1 for validation" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data_name '.*none_\*\.jsonl' matches no file"):
        opened(tmp_path / "none_*.jsonl")
    arrow = datasets.Dataset.from_list(rows)
    arrow.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert len(load_rows(opened(file), data_dir=None, seed=1, token=None)["train"]) == 4


def test_any_name_on_the_hub(tmp_path, monkeypatch):
    """`datasets` reads a folder as it reads the hub."""
    jsonl(tmp_path / "someone" / "mine" / "train.jsonl", [{"messages": MESSAGES}] * 4)
    asked = []

    def load_dataset(name, config, token):
        asked.append((name, config))
        return original(str(tmp_path / name))

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = open_task("someone/mine:main")
    assert (asked, task.data_format) == ([("someone/mine", "main")], "messages")
    assert len(load_splits(task, data_dir=None, seed=1, token=None).train) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "fed --data_name gsm8kk",
            "data_name: gsm8kk is no known data set, and no path here; choose one of ",
        ),
        ("fed --data_name gsm8kk", "did you mean gsm8k?"),
        ("dfl --dataset_type sst", "dataset_type: sst is no known data set"),
        ("split --data_name nowhere.jsonl", "data_name 'nowhere.jsonl' does not exist"),
        ("split --data_name nobody/nothing", "'nobody/nothing' could not be loaded from the hub"),
        ("fed --data_format alpaca", "data_format: alpaca is said of gsm8k, whose format is known"),
        ("fed --data_format chat", "data_format: chat is not one of auto, language_modeling"),
        ("fed --columns question", "columns: question will not do: 'question' in it is no pair"),
        ("eval --model_name m --data_name qa --columns a=b,a=c", "a name stands in it twice"),
    ],
)
def test_mistakes_in_the_options_of_own_data(capsys, words, message):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_the_examples_of_the_page_on_data(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    shown = re.findall(r"### (\w+)\n\n```json\n(.*?)\n```", page, re.DOTALL)
    assert {name for name, _ in shown} == set(get_args(DataFormat)) - {"auto", "language_modeling"}
    for name, line in shown:
        others = {"label": "neutral"} if name == "classification" else {}
        rows = [json.loads(line), json.loads(line) | others]
        assert opened(jsonl(tmp_path / f"{name}.jsonl", rows)).data_format == name
