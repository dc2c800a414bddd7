"""`--train_limit`: the first rows of a data set of any size, and no more of it is read."""

import gzip
import json

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedloom.data.own import open_task
from fedloom.data.sources import load_rows, load_splits
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError
from fedloom.options.fed import FedConfig

ROWS = [{"question": f"{i}?", "answer": f"{i}!"} for i in range(3000)]
LIMITS = {"train": 20}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=1000)


def arrow(path):
    whole = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=1000)


WRITERS = {
    "a.jsonl": lambda path: path.write_text(lines(ROWS[:20]) + "no JSON from here on"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS).encode())[:-8]),
    "a.csv": lambda path: path.write_text(
        "question,answer\n" + "".join(f"{i}?,{i}!\n" for i in range(20)) + "a,b,c\n"
    ),
    "a.txt": lambda path: path.write_bytes(b"".join(b"%d?\n" % i for i in range(20)) + b"\xff\n"),
    "a.parquet": table,
    "a.arrow": arrow,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "parts/train-00000-of-00002.jsonl": lambda path: (
        path.parent.mkdir(),
        path.write_text(lines(ROWS[:15])),
        (path.parent / "train-00001-of-00002.jsonl").write_text(lines(ROWS[15:20]) + "no JSON"),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_more_is_read_than_the_first_rows(tmp_path, monkeypatch, capsys, name):
    WRITERS[name](tmp_path / name)
    given = tmp_path / name.partition("/")[0]
    memory = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    task = open_task(str(given), limits=LIMITS)
    made = load_rows(task, data_dir=None, seed=1, token=None)["train"]
    assert [row.row.get("question", row.row.get("text")) for row in made] == [f"{i}?" for i in range(20)]
    assert "the first 20 training rows are read, and no others" in capsys.readouterr().out
    if name != "saved":
        with pytest.raises(UserError, match=r"JSON|gzip|memory|cells|UTF-8"):
            open_task(str(given))


def test_a_data_set_on_the_hub_is_streamed(tmp_path, monkeypatch):
    """`datasets` streams a folder as it streams the hub."""
    folder = tmp_path / "someone" / "mine"
    folder.mkdir(parents=True)
    films = [{"text": f"film {i}", "label": i % 2} for i in range(3000)]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(films, features=features).to_parquet(folder / f"{split}.parquet")
    original, asked = datasets.load_dataset, []

    def load_dataset(name, config, **options):
        asked.append(options)
        return original(str(tmp_path / name), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    limits = FedConfig(train_limit=20, val_limit=6).limits
    task = open_task("someone/mine", limits=limits)
    assert [options["streaming"] for options in asked] == [True] and task.label_names == ("bad", "good")
    splits = load_splits(task, data_dir=None, seed=1, token=None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 6, 20]
    assert [example.question for example in splits.train] == [f"film {i}" for i in range(20)]
    local = load_splits(open_task(str(folder), limits=limits), data_dir=None, seed=1, token=None)
    assert [len(part) for part in (local.train, local.validation, local.test)] == [20, 6, 3000]


def test_known_tasks_and_messages(tmp_path, capsys):
    task = open_task("arithmetic", limits=LIMITS)
    whole = load_splits(TASKS["arithmetic"], data_dir=None, seed=1, token=None)
    few = load_splits(task, data_dir=None, seed=1, token=None)
    assert few.train == whole.train[:20] and few.test == whole.test
    sorted_rows = [{"text": f"{i}", "label": "good" if i < 30 else "bad"} for i in range(60)]
    (tmp_path / "sorted.jsonl").write_text(lines(sorted_rows))
    with pytest.raises(UserError, match=r"1 different values in the first 20 rows .*raise --train_limit"):
        open_task(str(tmp_path / "sorted.jsonl"), limits=LIMITS)
    assert open_task(str(tmp_path / "sorted.jsonl"), limits={"train": 40}).label_names == ("bad", "good")
