"""Data files of every form, data sets on the disk, and what tasks and `fedloom split` make of their rows."""

import csv
import gzip
import io
import json
import shutil

import datasets
import pyarrow
import pyarrow.parquet
from fuzzing import NASTY_TEXT, NUMBERS, VALUES, damaged, fuzzed
from hypothesis import strategies as st

from fedloom.commands.split import _dataset
from fedloom.data.files import EXTENSIONS, read_file, read_local
from fedloom.data.sources import load_splits, read_examples
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError

FIELDS = sorted({name for task in TASKS.values() for field in task.fields for name in field.split("|")})
ROWS = st.lists(
    st.dictionaries(st.sampled_from(FIELDS) | NASTY_TEXT, VALUES, max_size=4), min_size=1, max_size=5
)
GOOD = [
    {
        "question": f"What is {n} plus 1?",
        "answer": f"It is {n + 1}.",
        "label": n % 2,
        "id": n,
        "of": [{"a": "é"}],
    }
    for n in range(9)
]


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows, between=","):
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for row in rows for name in row)), delimiter=between
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows, **options):
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue().to_pybytes()


WHOLE = {
    ".jsonl": as_jsonl(GOOD),
    ".json": json.dumps({"data": GOOD}, indent=1).encode(),
    ".csv": as_csv(GOOD),
    ".tsv": as_csv(GOOD, "\t"),
    ".parquet": as_parquet(GOOD),
    ".jsonl.gz": gzip.compress(as_jsonl(GOOD)),
}
FILES = st.one_of(
    *[st.tuples(st.just(extension), damaged(whole)) for extension, whole in WHOLE.items()],
    st.tuples(st.just(".parquet"), damaged(as_parquet(GOOD, compression="none", use_dictionary=False))),
    st.tuples(st.sampled_from(EXTENSIONS), st.binary(max_size=200)),
)


def read(folder, extension, content):
    path = folder / f"train{extension}"
    path.write_bytes(content)
    return read_file(path)


@fuzzed(file=FILES)
def test_damaged_files(folder, file):
    read(folder, *file)


@fuzzed(
    text=st.lists(
        st.sampled_from(
            ['{"a": 1}', "{", "}", "[", "]", ",", ":", '"a"', '"data"', "1", "NaN", "-Infinity", "1e999",
             "9" * 500, " ", "\n", "\r\n", "\t", '"', "'", ";", "\\ud83d", "\\u0000", "\x0b", "null",
             "true", "é", "a", "\ufeff"]
        ),
        max_size=30,
    ).map("".join),
    extension=st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]),
)  # fmt: skip
def test_pieces_of_text_files(folder, text, extension):
    read(folder, extension, text.encode())


@fuzzed(rows=ROWS, form=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
def test_rows_of_any_value(folder, rows, form):
    try:
        content = {
            ".jsonl": as_jsonl,
            ".json": lambda rows: json.dumps(rows).encode(),
            ".csv": as_csv,
            ".tsv": lambda rows: as_csv(rows, "\t"),
            ".parquet": as_parquet,
        }[form](rows)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError, csv.Error):
        return  # there can be no such file
    found = read(folder, form, content)
    for task in TASKS.values():
        try:
            made = read_examples(task, found)
            assert all(
                isinstance(value, str) for one in made for value in (one.example.question, one.example.answer)
            )
            _dataset(made)
        except UserError:
            pass


@fuzzed(
    name=st.sampled_from(sorted(TASKS)),
    values=st.lists(
        st.lists(VALUES | NASTY_TEXT | NUMBERS | st.just("#### 7"), min_size=5, max_size=5), min_size=1
    ),
)
def test_rows_with_the_fields_of_a_task(folder, name, values):
    task = TASKS[name]
    fields = [field.split("|")[0] for field in task.fields] + ["label"]
    rows = [dict(zip(fields, row, strict=False)) for row in values]
    (folder / "train.jsonl").write_bytes(as_jsonl(rows))
    load_splits(task, data_dir=folder, seed=1, token=None)


@fuzzed(
    target=st.sampled_from(["state.json", "dataset_info.json", "data-00000-of-00001.arrow"]),
    content=st.binary(max_size=50) | VALUES | st.none(),
    data=st.data(),
)
def test_saved_data_sets(folder, target, content, data):
    saved = folder / "saved"
    if not saved.exists():
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(GOOD).save_to_disk(saved)
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(saved, copy)
    if isinstance(content, bytes):
        (copy / target).write_bytes(content)
    elif content is None:
        (copy / target).write_bytes(data.draw(damaged((saved / target).read_bytes())))
    else:
        whole = json.loads((saved / "state.json").read_text()) | json.loads(
            (saved / "dataset_info.json").read_text()
        )
        name = data.draw(st.sampled_from(sorted(whole)))
        (copy / target).write_text(json.dumps(whole | {name: content}))
    read_local(copy)


@fuzzed(
    names=st.lists(
        st.sampled_from(
            [
                "train",
                "val",
                "test-0",
                "test_00-of-9",
                "train-1",
                "train-2-of-2",
                "train-0-of-2",
                "train-0-of-2-0123456789abcdef",
                "x",
                ".train",
                "train.",
                "data/train",
            ]
        )
    )
)
def test_names_of_files(folder, names):  # fmt: skip
    shutil.rmtree(folder / "named", ignore_errors=True)
    for number, name in enumerate(names):
        path = folder / "named" / f"{name}{EXTENSIONS[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_jsonl(GOOD))
    (folder / "named").mkdir(exist_ok=True)
    read_local(folder / "named")
