import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fedloom.config import UserError
from fedloom.data.files import read_file, read_local

ROWS = [{"question": f'What is {n} + 1, "please"?', "answer": f"{n} + 1\n= {n + 1}"} for n in range(4)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path, rows=ROWS):
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_json_data(path, rows=ROWS):
    path.write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")


def write_csv(path, rows=ROWS):
    datasets.Dataset.from_list(rows).to_csv(path)


def write_csv_with_byte_order_mark(path, rows=ROWS):
    write_csv(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def write_parquet(path, rows=ROWS):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = [
    ("jsonl", write_jsonl),
    ("json", write_json),
    ("json", write_json_data),
    ("csv", write_csv),
    ("csv", write_csv_with_byte_order_mark),
    ("parquet", write_parquet),
]


@pytest.mark.parametrize(("extension", "write"), WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, extension, write):
    path = tmp_path / f"train.{extension}"
    write(path)
    located = read_file(path)
    assert [dict(row) for _, row in located] == ROWS
    assert all(where.startswith(f"{path}, ") for where, _ in located)
    assert [row for _, row in read_local(path)["train"]] == ROWS
    assert [row for _, row in read_local(tmp_path)["train"]] == ROWS


def test_rows_know_their_lines(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [where for where, _ in read_file(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path = tmp_path / "train.csv"
    path.write_text('a,b\n"two\nlines",1\n2,3\n')
    assert [where for where, _ in read_file(path)] == [f"{path}, line 3", f"{path}, line 4"]


def test_a_folder_with_all_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_csv(tmp_path / "validation.csv", ROWS[:2])
    write_parquet(tmp_path / "test.parquet", ROWS[:1])
    (tmp_path / "README.md").write_text("about the data")
    sizes = {split: len(rows) for split, rows in read_local(tmp_path).items()}
    assert sizes == {"train": 4, "validation": 2, "test": 1}


@pytest.mark.parametrize("name", ["valid", "val", "dev"])
def test_validation_under_its_other_names(tmp_path, name):
    write_jsonl(tmp_path / "train.jsonl")
    write_jsonl(tmp_path / f"{name}.jsonl", ROWS[:1])
    assert len(read_local(tmp_path)["validation"]) == 1


def test_what_save_to_disk_wrote(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    assert [dict(row) for _, row in read_local(tmp_path / "one")["train"]] == ROWS
    datasets.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(tmp_path / "parts")
    parts = read_local(tmp_path / "parts")
    assert [dict(row) for _, row in parts["test"]] == ROWS[2:3]
    assert parts["test"][0].where == f"{tmp_path / 'parts'}, split test, row 1"
    datasets.DatasetDict(other=whole).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match="no split 'train'; it has other"):
        read_local(tmp_path / "odd")
    (tmp_path / "one" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not a complete save_to_disk folder"):
        read_local(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"a": 1}\n{"a": \n', r"train\.jsonl, line 2: not valid JSON"),
        ("train.jsonl", b'{"a": 1}\n[1]\n', r"train\.jsonl, line 2: a row must be an object .* '\[1\]'"),
        ("train.jsonl", b"\n\n", "has no rows"),
        ("train.jsonl", b"", "has no rows"),
        ("train.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("train.json", b'[{"a": 1},\n{"a" 2}]', r"train\.json: not valid JSON .* line 2 column"),
        ("train.json", b'{"rows": []}', "a list of rows"),
        ("train.json", b"[]", "has no rows"),
        ("train.json", b'[{"a": 1}, 5]', r"train\.json, row 2: a row must be"),
        ("train.csv", b"a,b\n1,2\n1,2,3\n", r"train\.csv, line 3: more cells than the header has \(2\)"),
        ("train.csv", b"a,b\n", "has no rows"),
        ("train.parquet", b"not parquet", "not a readable parquet file"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_local(tmp_path)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "data.txt").write_text("hello")
    with pytest.raises(
        UserError, match=r"extension '\.txt'; data files are \.jsonl, \.json, \.csv, \.parquet"
    ):
        read_local(tmp_path / "data.txt")


def test_folders_without_training_data(tmp_path):
    with pytest.raises(UserError, match=r"'.*nowhere' does not exist"):
        read_local(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it holds nothing"):
        read_local(tmp_path)
    (tmp_path / "training.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"must hold train\.jsonl\|.* it holds training\.jsonl"):
        read_local(tmp_path)


def test_two_files_for_one_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl"):
        read_local(tmp_path)
