import json
from dataclasses import replace

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import write_rows

from fedloom.data import arithmetic
from fedloom.data.example import Example
from fedloom.data.sources import _complete, load_rows, load_splits
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError


def write(path, numbers, **changes):
    rows = [{"question": f"What is {n} + 1?", "final_ans": str(n + 1), **changes} for n in numbers]
    write_rows(path, rows)


def load(data_dir, name="ChilleD/MultiArith", seed=1):
    return load_splits(TASKS[name], data_dir=data_dir, seed=seed, token=None)


def finals(examples):
    return {int(example.final) for example in examples}


def sizes(splits):
    return len(splits.train), len(splits.validation), len(splits.test)


def test_own_splits_stay_what_they_are(tmp_path):
    write(tmp_path / "train.jsonl", range(10))
    write(tmp_path / "validation.jsonl", range(100, 103))
    write(tmp_path / "test.jsonl", range(200, 204))
    splits = load(tmp_path)
    assert [example.final for example in splits.train] == [str(n + 1) for n in range(10)]
    assert finals(splits.validation) == {101, 102, 103}
    assert finals(splits.test) == {201, 202, 203, 204}


def test_a_missing_validation_split_is_held_out_of_train(tmp_path):
    write(tmp_path / "train.jsonl", range(40))
    write(tmp_path / "test.jsonl", range(100, 110))
    splits = load(tmp_path)
    assert sizes(splits) == (36, 4, 10)
    assert finals(splits.train) | finals(splits.validation) == set(range(1, 41))
    assert finals(splits.test) == set(range(101, 111)), "the published test split is never trained on"
    assert load(tmp_path) == splits
    assert load(tmp_path, seed=2).validation != splits.validation


def test_a_missing_test_split_is_held_out_of_train(tmp_path):
    write(tmp_path / "train.jsonl", range(40))
    write(tmp_path / "validation.jsonl", range(100, 105))
    splits = load(tmp_path)
    assert sizes(splits) == (36, 5, 4)
    assert finals(splits.validation) == set(range(101, 106))


def test_one_file_is_split_60_20_20(tmp_path):
    write(tmp_path / "everything.jsonl", range(50))
    splits = load(tmp_path / "everything.jsonl")
    assert sizes(splits) == (30, 10, 10)
    assert finals(splits.train) | finals(splits.validation) | finals(splits.test) == set(range(1, 51))


@settings(deadline=None)
@given(st.integers(1, 60), st.sets(st.sampled_from(["validation", "test"])), st.integers(0, 1000))
def test_whatever_is_missing_nothing_is_lost_or_shared(count, given_splits, seed):
    own = {split: [Example("q", "0", "0")] for split in given_splits}
    train = [Example(str(n), str(n), str(n)) for n in range(count)]
    missing = 2 - len(given_splits)
    if count <= missing:
        with pytest.raises(UserError, match=f"{count} training examples are too few"):
            _complete({"train": train, **own}, seed)
        return
    splits = _complete({"train": train, **own}, seed)
    held = [splits[split] for split in ("validation", "test") if split not in given_splits]
    assert all(held) and splits["train"]
    together = [*splits["train"], *(example for part in held for example in part)]
    assert sorted(int(example.final) for example in together) == list(range(count))
    assert all(splits[split] == own[split] for split in given_splits)


def test_the_embedded_task_comes_from_its_seed():
    assert TASKS["arithmetic"].embedded is arithmetic.splits
    task = replace(TASKS["arithmetic"], embedded=lambda seed: arithmetic.splits(seed, train=30))
    assert load_splits(task, data_dir=None, seed=5, token=None) == arithmetic.splits(5, train=30)


def test_the_embedded_task_can_be_cut_to_one_step():
    task = replace(TASKS["arithmetic"], embedded=lambda seed: arithmetic.splits(seed, steps=(1,), train=20))
    splits = load_splits(task, data_dir=None, seed=0, token=None)
    assert len(splits.train) == 20 and not any("\n" in example.answer for example in splits.train)


def test_a_missing_field_is_named_with_file_line_and_what_was_found(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1 + 1?", "final_ans": 2}\n{"question": "1 + 2?", "result": 3}\n')
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 2: no field 'final_ans'.* found are 'question', 'result'"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "1 + 1?", "final_ans": "two"},
            "line 1: field 'final_ans' must be a number, but is 'two'",
        ),
        ({"question": "1 + 1?", "final_ans": None}, "line 1: field 'final_ans' is empty"),
        ({"question": " ", "final_ans": 2}, r"line 1: field 'question' is empty"),
        (
            {"question": "1 + 1?", "final_ans": float("nan")},
            r"line 1: field 'final_ans' is empty \(nan\)",
        ),
        ({"question": float("-inf"), "final_ans": 2}, r"line 1: field 'question' is empty \(-inf\)"),
        (
            {"messages": [{"role": "user", "content": "1 + 1?"}]},
            r"no field 'question'.* found are 'messages'\. Rename them, or write the rows anew with",
        ),
    ],
)
def test_values_that_cannot_be_used(tmp_path, row, message):
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("answer", [18, 18.5, True, ["#### 18"]])
def test_an_answer_of_gsm8k_that_is_no_text(tmp_path, answer):
    rows = [{"question": "q", "answer": "#### 18"}, {"question": "q", "answer": answer}]
    write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(
        UserError, match=r"line 2: field 'answer' must (end in '#### ' and|be text or) a number"
    ):
        load(tmp_path, "gsm8k")


def test_camel_math_takes_its_algebra_rows(tmp_path):
    topics = ["Algebra", "Geometry", "Algebra", "Calculus", "Algebra"]
    rows = [{"topic;": t, "message_1": f"q{n}", "message_2": f"x = {n}"} for n, t in enumerate(topics)]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    splits = load(tmp_path / "all.json", "camel-ai/math")
    assert finals([*splits.train, *splits.validation, *splits.test]) == {0, 2, 4}
    (tmp_path / "none.json").write_text(json.dumps(rows[1:2]))
    with pytest.raises(UserError, match=r"none\.json: none of the 1 rows belongs to the task camel-ai/math"):
        load(tmp_path / "none.json", "camel-ai/math")
    (tmp_path / "bare.json").write_text('[{"message_1": "q", "message_2": "1"}]')
    with pytest.raises(UserError, match="no field 'topic;'"):
        load(tmp_path / "bare.json", "camel-ai/math")


@pytest.fixture
def hub_like(tmp_path, monkeypatch):
    """A folder laid out like a repository of the hub, with a configuration 'main'."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "repository/data/train.jsonl", range(20))
    write(tmp_path / "repository/data/test.jsonl", range(100, 105))
    configs = [{"split": split, "path": f"data/{split}.jsonl"} for split in ("train", "test")]
    header = json.dumps({"configs": [{"config_name": "main", "data_files": configs}]})
    (tmp_path / "repository/README.md").write_text(f"---\n{header}\n---\n")
    return tmp_path / "repository"


def test_a_data_set_of_the_hub(hub_like):
    task = replace(TASKS["ChilleD/MultiArith"], hub=str(hub_like), hub_config="main")
    splits = load_splits(task, data_dir=None, seed=1, token=None)
    assert sizes(splits) == (18, 2, 5)
    assert finals(splits.test) == set(range(101, 106))


def test_a_row_of_the_hub_that_lacks_a_field(hub_like):
    task = replace(TASKS["gsm8k"], hub=str(hub_like))
    with pytest.raises(UserError, match="split train, row 1: no field 'answer', which gsm8k needs"):
        load_splits(task, data_dir=None, seed=1, token=None)


def test_a_configuration_that_is_not_there(hub_like):
    task = replace(TASKS["gsm8k"], hub=str(hub_like), hub_config="other")
    with pytest.raises(
        UserError, match=r"(?s)could not be loaded from the hub: .*'other' not found.*--data_dir"
    ):
        load_splits(task, data_dir=None, seed=1, token=None)


def test_the_hub_out_of_reach():
    # The tests run with the hub switched off, and the data set is in no cache.
    task = replace(TASKS["gsm8k"], hub="fedloom-tests/no-such-data-set")
    with pytest.raises(
        UserError, match=r"'fedloom-tests/no-such-data-set' could not be .*--data_dir.*HF_TOKEN"
    ):
        load_splits(task, data_dir=None, seed=1, token=None)


def test_a_gated_data_set_tells_to_set_a_token_and_shows_none(monkeypatch):
    def refuse(path, name, token):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    for token, known in [("hf_secret", "a token was given"), (None, "no token was given")]:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(UserError, match=rf"gated dataset.*{known}.*set HF_TOKEN") as caught:
            load_splits(TASKS["gsm8k"], data_dir=None, seed=1, token=token)
        assert "hf_secret" not in str(caught.value)


def reviews(count, label=None):
    """Rows as GLUE has them for SST-2."""
    return [{"sentence": f"phrase {n}", "label": n % 2 if label is None else label} for n in range(count)]


def pairs(count, origin):
    """Rows as GLUE has them for MNLI."""
    return [
        {"premise": f"{origin} {n}", "hypothesis": "It is so.", "label": n % 3, "idx": n}
        for n in range(count)
    ]


def test_the_published_validation_split_stays_and_a_test_is_held_out(tmp_path):
    write_rows(tmp_path / "train.jsonl", reviews(40))
    write_rows(tmp_path / "validation.jsonl", reviews(6))
    splits = load(tmp_path, "sst2")
    assert sizes(splits) == (36, 6, 4)
    assert [example.label for example in splits.validation] == ["negative", "positive"] * 3


@pytest.mark.parametrize("label", [-1, "-1"])
def test_a_test_split_without_labels_is_not_used(tmp_path, label):
    write_rows(tmp_path / "train.jsonl", reviews(40))
    write_rows(tmp_path / "validation.jsonl", reviews(6))
    write_rows(tmp_path / "test.jsonl", reviews(9, label))
    assert sizes(load(tmp_path, "sst2")) == (36, 6, 4)
    assert set(load_rows(TASKS["sst2"], data_dir=tmp_path, seed=1, token=None)) == {"train", "validation"}


def test_a_test_split_with_labels_is_used(tmp_path):
    write_rows(tmp_path / "train.jsonl", reviews(40))
    write_rows(tmp_path / "test.jsonl", reviews(9))
    assert sizes(load(tmp_path, "sst2")) == (36, 4, 9)


@pytest.mark.parametrize("names", [["positive", "negative"], ["Pos", "Neg"], ["0", "1"]])
def test_a_saved_data_sets_own_names_of_its_classes_count_not_its_numbers(tmp_path, names):
    kinds = datasets.Features(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    rows = [{"sentence": ("a fine film", "a dull one")[n % 2], "label": n % 2} for n in range(10)]
    datasets.Dataset.from_list(rows, features=kinds).save_to_disk(tmp_path / "one")
    every = vars(load(tmp_path / "one", "sst2")).values()
    found = {made.question: made.label for part in every for made in part}
    fine, dull = ("negative", "positive") if names == ["0", "1"] else ("positive", "negative")
    assert found == {"a fine film": fine, "a dull one": dull}


def test_a_label_out_of_range_is_named_with_file_line_and_the_labels_allowed(tmp_path):
    path = tmp_path / "train.jsonl"
    write_rows(path, [*reviews(3), {"sentence": "odd", "label": 2}])
    with pytest.raises(UserError) as caught:
        load(tmp_path, "sst2")
    assert str(caught.value) == (
        f"{path}, line 4: field 'label' must be one of 0 (negative), 1 (positive), but is 2 (data set sst2)."
    )
    write_rows(path, reviews(4, -1))
    with pytest.raises(UserError, match=r"line 1: field 'label' must be one of 0 .* but is -1"):
        load(tmp_path, "sst2")


def test_qnli_in_a_csv_file(tmp_path):
    rows = "".join(f'"Who, {n}?",It is {n}.,{n % 2}\n' for n in range(10))
    (tmp_path / "all.csv").write_text("question,sentence,label\n" + rows)
    splits = load(tmp_path / "all.csv", "qnli")
    assert sizes(splits) == (6, 2, 2)
    (first,) = (
        example for example in [*splits.train, *splits.validation, *splits.test] if "0" in example.question
    )
    assert (first.pair, first.label) == (("Who, 0?", "It is 0."), "entailment")


@pytest.mark.parametrize("saved", [False, True])
def test_mnli_validates_on_matched_and_tests_on_mismatched(tmp_path, saved):
    parts = {
        "train": pairs(30, "train"),
        "validation_matched": pairs(6, "matched"),
        "validation_mismatched": pairs(9, "mismatched"),
        "test_matched": [{**row, "label": -1} for row in pairs(5, "secret")],
        "test_mismatched": [{**row, "label": -1} for row in pairs(5, "secret")],
    }
    if saved:
        as_sets = {split: datasets.Dataset.from_list(rows) for split, rows in parts.items()}
        datasets.DatasetDict(as_sets).save_to_disk(tmp_path)
    else:
        for split, rows in parts.items():
            write_rows(tmp_path / f"{split}.jsonl", rows)
    splits = load(tmp_path, "mnli")
    assert sizes(splits) == (30, 6, 9)
    assert splits.validation[2].pair == ("matched 2", "It is so.")
    assert splits.test[8].pair == ("mismatched 8", "It is so.")
    assert {example.label for example in splits.train} == set(TASKS["mnli"].label_names)


def test_mnli_with_plain_names(tmp_path):
    write_rows(tmp_path / "train.jsonl", pairs(30, "train"))
    write_rows(tmp_path / "dev.jsonl", pairs(4, "dev"))
    assert sizes(load(tmp_path, "mnli")) == (27, 4, 3)


def test_rows_come_with_all_their_fields(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{**row, "idx": n} for n, row in enumerate(reviews(4))])
    rows = load_rows(TASKS["sst2"], data_dir=tmp_path, seed=1, token=None)
    assert list(rows) == ["train"], "nothing is held out"
    assert rows["train"][3].row == {"sentence": "phrase 3", "label": 1, "idx": 3}
    assert rows["train"][3].example == Example("phrase 3", "positive", "", "positive")


def test_rows_of_the_embedded_task_make_its_examples():
    task = replace(TASKS["arithmetic"], embedded=lambda seed: arithmetic.splits(seed, train=30))
    rows = load_rows(task, data_dir=None, seed=5, token=None)
    assert {split: [made.example for made in part] for split, part in rows.items()} == vars(task.embedded(5))
    assert set(rows["train"][0].row) == {"question", "answer", "label"}
