"""What may stand in a field: what cannot be read as what it must be is told with its line and its name."""

import json

import datasets
import pytest
from run_files import write_rows
from task_rows import ROWS

from fedloom.commands.cli import main
from fedloom.data.fields import label_of, text
from fedloom.data.sources import load_splits
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError

FIELDS = [
    (name, field) for name, task in TASKS.items() for bar in task.fields for field in bar.split("|")[:1]
]
NUMBERS = {"Answer", "final_ans"}


def rows(name, count=6, **changes):
    """Rows of a task, the last but one with changes."""
    content = [dict(ROWS[name]) for _ in range(count)]
    content[-2] |= changes
    return content


def read(path, name, content):
    write_rows(path, content)
    return load_splits(TASKS[name], data_dir=path, seed=1, token=None)


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize(
    "value", [["a"], {"a": 1}, [], True, None, " ", float("nan"), float("-inf")], ids=repr
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path, name, field, value):
    with pytest.raises(UserError) as told:
        read(tmp_path / "mine.jsonl", name, rows(name, **{field: value}))
    assert f"mine.jsonl, line 5: field '{field}' " in str(told.value)
    empty = value is None or not isinstance(value, bool | list | dict)
    assert ("is empty" in str(told.value)) == empty


@pytest.mark.parametrize(
    ("name", "field"), [("ChilleD/SVAMP", "Type"), ("camel-ai/math", "sub_topic"), ("qa", "label")]
)
def test_a_label_may_be_missing_but_not_a_list(tmp_path, name, field):
    every = vars(read(tmp_path / "mine.jsonl", name, rows(name, **{field: float("nan")}))).values()
    assert sorted({made.label for part in every for made in part}) == ["", ROWS[name][field]]
    with pytest.raises(
        UserError, match=rf"line 5: field '{field}' must be text or a number, but is \['maps'\]"
    ):
        read(tmp_path / "mine.jsonl", name, rows(name, **{field: ["maps"]}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.0, "0"), ("0", "0"), ("0.0", "0.0"), (2.5, "2.5"), (False, "False"), (None, ""), (" ", "")],
)
def test_a_label_0_is_a_label(value, expected):
    assert label_of({"label": value}) == expected
    assert label_of({}) == ""


@pytest.mark.parametrize(
    ("value", "expected"), [(" a ", "a"), (0, "0"), (18.0, "18"), (1e20, "1" + "0" * 20), (0.1, "0.1")]
)
def test_a_number_is_text_too(value, expected):
    assert text({"answer": value}, "answer") == expected


def test_split_and_view_count_a_label_0_and_tell_what_is_none(tmp_path, capsys):
    content = [{"question": "a?", "answer": "b", "label": i % 2, "site": i % 3} for i in range(12)]
    mine = tmp_path / "mine"
    mine.mkdir()

    def split(name, *flags):
        for part, rows in (("train", content), ("validation", content[:1]), ("test", content[:1])):
            (mine / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = f"split --data_name qa --data_dir {mine} --num_clients 3 --output_path {tmp_path / name}"
        return main([*words.split(), *flags])

    assert split("shards", "--partition", "shards", "--labels_per_client", "1") == 0
    counts = json.loads((tmp_path / "shards" / "split.json").read_text())["labels"]
    assert {label for of_client in counts.values() for label in of_client} == {"0", "1"}
    assert split("sites", "--partition", "by_field", "--field", "site") == 0
    first = datasets.load_from_disk(str(tmp_path / "sites" / "client_1"))
    assert len(set(first["site"])) == 1
    (tmp_path / "sites" / "split.json").unlink()  # as data of another origin: labels are what stands there
    capsys.readouterr()
    assert main(["view", f"{tmp_path}/sites"]) == 0
    assert "no label" not in capsys.readouterr().out
    content[7]["site"] = float("nan")
    assert split("missing", "--partition", "by_field", "--field", "site") == 2
    assert "line 8: field is 'site', but the row has none" in capsys.readouterr().err
    for row in content:
        row["site"] = [1]
    assert split("lists", "--partition", "by_field", "--field", "site") == 2
    assert "line 1: field 'site' must be text or a number, but is [1]" in capsys.readouterr().err
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "client_1.jsonl").write_text('{"label": {"a": 1}}\n')
    assert main(["view", f"{tmp_path}/odd"]) == 2
    assert "client_1.jsonl, line 1: field 'label' must be text" in capsys.readouterr().err


@pytest.mark.parametrize("label", [-1.0, "-1.0"])
def test_a_test_split_without_labels_may_come_from_pandas(tmp_path, label):
    for part, changes in (("train", {}), ("test", {"label": label})):
        content = [dict(ROWS["sst2"]) | changes for _ in range(10)]
        write_rows(tmp_path / f"{part}.jsonl", content)
    splits = load_splits(TASKS["sst2"], data_dir=tmp_path, seed=1, token=None)
    assert [len(part) for part in vars(splits).values()] == [6, 2, 2]
