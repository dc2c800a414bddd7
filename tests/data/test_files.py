import gzip
import json
import os
import time

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from run_files import write_rows

from fedloom.data import rows
from fedloom.data.files import read_file, read_local
from fedloom.errors import UserError

ROWS = [{"question": f'What is {n} + 1, "please"?', "answer": f"{n} + 1\n= {n + 1}"} for n in range(4)]


def write_jsonl(path, rows=ROWS):
    write_rows(path, rows)


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


def write_tsv(path, rows=ROWS):
    rows = [{name: value.replace("\n", " ") for name, value in row.items()} for row in rows]
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tsv_with_quotes(path, rows=ROWS):
    datasets.Dataset.from_list(rows).to_csv(path, sep="\t")


def write_gzip(path, rows=ROWS):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


WRITERS = [
    ("jsonl", write_jsonl),
    ("json", write_json),
    ("json", write_json_data),
    ("json", write_jsonl),
    ("jsonl.gz", write_gzip),
    ("csv", write_csv),
    ("tsv", write_tsv_with_quotes),
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
        ("train.json", b'[{"a": 1},\n{"a" 2}]', r"train\.json, row 2: not valid JSON .* line 2 column"),
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
    (tmp_path / "data.doc").write_text("hello")
    with pytest.raises(
        UserError, match=r"extension '\.doc'; data files are \.jsonl, \.json, \.csv, \.tsv, \.parquet"
    ):
        read_local(tmp_path / "data.doc")


def test_folders_without_training_data(tmp_path):
    with pytest.raises(UserError, match=r"'.*nowhere' does not exist"):
        read_local(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it holds nothing"):
        read_local(tmp_path)
    (tmp_path / "validation.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"must hold train\.jsonl\|.* it holds validation\.jsonl"):
        read_local(tmp_path)


def test_two_files_for_one_split(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl"):
        read_local(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00000-of-00002-a09b74b3ef9c3b56.parquet", "train-00001-of-00002-0123456789abcdef.parquet"],
        ["train-2.parquet", "train-10.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["main/train_1.parquet", "main/train_2.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
    ],
)
def test_one_split_in_several_files_as_the_hub_has_it(tmp_path, names, caplog):
    for name, part in zip(names, (ROWS[:3], ROWS[3:]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / name, part)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("about the data")
    found = read_local(tmp_path)
    assert {split: [dict(row) for _, row in part] for split, part in found.items()} == {"train": ROWS}
    assert found["train"][3].where == f"{tmp_path / names[1]}, row 1"
    assert caplog.text == ""


def test_parts_that_are_missing_or_do_not_fit_together(tmp_path, caplog):
    write_jsonl(tmp_path / "train-00001-of-00003.jsonl")
    assert len(read_local(tmp_path)["train"]) == 4
    assert "has 1 of the 3 files of train; the others are missing" in caplog.text
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl")
    with pytest.raises(
        UserError, match=r"train-00000-of-00002\.jsonl and train-00001-of-00003\.jsonl; one file"
    ):
        read_local(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "two/deep" / name).mkdir(parents=True)
        write_jsonl(tmp_path / "two/deep" / name / "train.jsonl")
    with pytest.raises(UserError, match="has train in each of one, two; give one of them"):
        read_local(tmp_path / "two/deep")


def test_quotation_marks_in_a_table_with_tabs(tmp_path):
    path = tmp_path / "glue.tsv"
    path.write_text('sentence\tlabel\n"It is so\t0\nso " good\t1\n"quoted"\t1\n')
    assert [dict(row) for _, row in read_file(path)] == [
        {"sentence": '"It is so', "label": "0"},
        {"sentence": 'so " good', "label": "1"},
        {"sentence": '"quoted"', "label": "1"},
    ]
    path.write_text('sentence\tlabel\n"a ""word"" with\ta tab"\t0\n"two\nlines"\t1\n')
    assert [(where, dict(row)) for where, row in read_file(path)] == [
        (f"{path}, line 2", {"sentence": 'a "word" with\ta tab', "label": "0"}),
        (f"{path}, line 4", {"sentence": "two\nlines", "label": "1"}),
    ]


def test_long_cells_and_columns_without_a_name(tmp_path):
    path = tmp_path / "pandas.csv"
    path.write_text(",question,answer,\r\n0,q,{},\r\n".format("word " * 30_000))
    ((_, row),) = read_file(path)
    assert row == {"question": "q", "answer": "word " * 30_000}


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"b": {"c": "\\ud83d"}}', r"line 2: field 'b' has half of a surrogate pair"),
        ("a.jsonl", b'{"\\ud83d": 1}', r"line 1: a field's name has half of a surrogate pair"),
        ("a.jsonl", b'{"a": "\xed\xa0\xbd"}', r"line 1: is not UTF-8 text"),
        ("a.jsonl", b'{"a": 1, "b": 2, "a": 3}', r"line 1: the row has 'a' twice"),
        ("a.jsonl", b'{"a": {"b": 1, "b": 2}}', r"line 1: field 'a' has 'b' twice"),
        ("a.jsonl", b'{"a": [%s]}' % (b"9" * 5000), r"line 1: field 'a' has a number of 5,000 digits"),
        ("a.jsonl", b'{"a": %s}' % DEEP.encode(), r"line 1: nested too deeply"),
        (
            "a.jsonl",
            b'{"a": %s1%s}' % (b"[" * 60, b"]" * 60),
            r"line 1: field 'a' is nested more than 50 times",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": 1} {"a": 2}', r"line 2: not valid JSON \(nothing more may follow"),
        ("a.jsonl", b"\0" * 100, r"line 1: has NUL bytes"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"line 1: is not UTF-8 text"),
        (
            "a.json",
            b'[{"a": 1},\n {"a": %s}]' % (b"9" * 5000),
            r"row 2: field 'a' has a number of 5,000 digits",
        ),
        ("a.json", b'{"data": [{"a": 1}, {"a": 1, "a": 2}]}', r"row 2: the row has 'a' twice"),
        ("a.json", b'{"a": 1}\n{"a": 1, "a": 2}', r"line 2: the row has 'a' twice"),
        ("a.json", b'[{"a": 1}] x', r"nothing more may follow, column 12"),
        ("a.json", b'[{"a": 1} {"a": 1}]', r"row 1: not valid JSON \(a comma or \] must follow"),
        ("a.json", b"[" * 100_000, r"row 1: nested too deeply"),
        ("a.json", b'[{"a": "\\udc00"}]', r"row 1: field 'a' has half of a surrogate pair"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"line 1: the header has 'a' twice"),
        ("a.csv", b'a,b\n1,2\n1,"2\n1,2\n', r"line 3: .*a quotation mark that is never closed"),
        ("a.csv", "a,b\n1,2".encode("utf-16-le"), r"line 1: has NUL bytes"),
        ("a.csv", b"a,b\n1,2\n1,\xff", r"line 3: is not UTF-8 text"),
        ("a.tsv", b"a\tb\n1\t2\n1\t2\t3\n", r"line 3: more cells than the header has \(2\)"),
        ("a.jsonl.gz", b"not packed", r"not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], r"not a complete gzip file"),
    ],
)
def test_what_stands_in_a_file_is_told_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"q": ["a", "b"], "day": pyarrow.array([0, 2**60], pyarrow.timestamp("ms"))},
            r"row 2: field 'day' cannot be read",
        ),
        ({"day": pyarrow.array([2**31 - 1], pyarrow.date32())}, r"row 1: field 'day' cannot be read"),
        (
            {
                "q": pyarrow.StringArray.from_buffers(
                    2, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")
                )
            },
            r"row 2: field 'q' cannot be read \('utf-8' codec",
        ),
    ],
)
def test_values_of_a_parquet_file_that_have_no_counterpart(tmp_path, table, message):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "a.parquet")


def parquet_says_once(path):
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3300, pyarrow.int32()), ["x" * (1 << 20)])
    pyarrow.parquet.write_table(pyarrow.table({"a": text}), path, dictionary_pagesize_limit=1 << 26)


def parquet_nested(path):
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3300, pyarrow.int32()), ["x" * (1 << 20)])
    lists = pyarrow.ListArray.from_arrays([0, 3300], pyarrow.StructArray.from_arrays([text], ["b"]))
    pyarrow.parquet.write_table(pyarrow.table({"a": lists}), path, dictionary_pagesize_limit=1 << 26)


def parquet_packed(path):
    schema = pyarrow.schema([("a", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(6):
            writer.write_table(pyarrow.table({"a": ["x" * (5 << 20)]}))


def parquet_of_zeros(path):
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(4_000_000, pyarrow.int64())}), path)


def gzip_of_zeros(path):
    with gzip.open(path, "wb") as file:
        for _ in range(30):
            file.write(b" " * (1 << 20))


@pytest.mark.parametrize(
    ("extension", "write"),
    [
        ("parquet", parquet_says_once),
        ("parquet", parquet_nested),
        ("parquet", parquet_packed),
        ("parquet", parquet_of_zeros),
        ("jsonl.gz", gzip_of_zeros),
    ],
)
def test_a_small_file_that_would_fill_the_memory(tmp_path, monkeypatch, extension, write):
    monkeypatch.setattr(rows, "LARGEST_UNPACKED", 16 << 20)
    path = tmp_path / f"a.{extension}"
    write(path)
    began = time.monotonic()
    with pytest.raises(UserError, match="over 100 times as many, which looks like a mistake or an attack"):
        read_file(path)
    assert time.monotonic() - began < 5


def test_what_looks_like_a_file_and_is_none(tmp_path):
    (tmp_path / "folder/train.jsonl").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/train.jsonl")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/train.jsonl").symlink_to("train.jsonl")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/train.jsonl").symlink_to("nowhere")
    for name, message in (
        ("folder", "is a folder, not a file"),
        ("pipe", "is a pipe or a device"),
        ("loop", "Too many levels of symbolic links"),
        ("gone", "No such file"),
    ):
        for path in (tmp_path / name, tmp_path / name / "train.jsonl"):
            with pytest.raises(UserError, match=rf"{message}|must hold train"):
                read_local(path)
    (tmp_path / "hole.jsonl").touch()
    os.truncate(tmp_path / "hole.jsonl", 1 << 42)
    with pytest.raises(UserError, match="holds 4,398,046,511,104 bytes, but this machine has only"):
        read_local(tmp_path / "hole.jsonl")
    with pytest.raises(UserError, match="File name too long"):
        read_local(tmp_path / ("x" * 300))


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"_data_files": 5}', "[" * 100_000, "\0"])
def test_what_save_to_disk_never_wrote(tmp_path, file, content):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (tmp_path / "one" / file).write_text(content)
    try:
        found = read_local(tmp_path / "one")["train"]
    except UserError as error:
        assert "is not a complete save_to_disk folder" in str(error)
    else:
        assert [dict(row) for _, row in found] == ROWS, "what is left out may be of no use"


def test_saved_data_without_rows_and_pipes_among_it(tmp_path):
    datasets.Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match="has no rows"):
        read_local(tmp_path / "empty")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    os.mkfifo(tmp_path / "one/pipe")
    with pytest.raises(UserError, match="a pipe or a device"):
        read_local(tmp_path / "one")


def test_hidden_files_are_no_data(tmp_path):
    (tmp_path / "train").mkdir()
    for name in (".holder.json", ".ipynb_checkpoints.jsonl"):
        (tmp_path / "train" / name).write_text('{"pid": 1}')
    (tmp_path / "train" / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / ".train.jsonl").write_text("not json")
    assert [row.row["question"] for row in read_local(tmp_path)["train"]] == ["q"]
