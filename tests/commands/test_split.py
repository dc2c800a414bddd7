import json

import datasets
import pytest
from run_files import write_rows

from fedloom.commands.split import run_split
from fedloom.data.clients import load_clients, load_validation
from fedloom.data.sources import load_splits
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError

DEFAULTS = {
    "data_name": "sst2",
    "data_dir": None,
    "num_clients": 3,
    "partition": "iid",
    "alpha": 0.5,
    "min_size": 1,
    "labels_per_client": 2,
    "field": None,
    "data_seed": 1,
    "token": None,
}


def reviews(count, first=0):
    return [{"sentence": f"phrase {n}", "label": n % 2, "idx": n} for n in range(first, first + count)]


@pytest.fixture
def sst2(tmp_path):
    write_rows(tmp_path / "sst2/train.jsonl", reviews(60))
    write_rows(tmp_path / "sst2/validation.jsonl", reviews(8, first=100))
    write_rows(tmp_path / "sst2/test.jsonl", reviews(4, first=200))
    return tmp_path / "sst2"


def split(output, **options):
    run_split(**{**DEFAULTS, **options, "output_path": str(output)})


def record(output):
    return json.loads((output / "split.json").read_text())


def saved_rows(folder):
    return datasets.load_from_disk(str(folder)).to_list()


def test_every_row_goes_to_one_client_with_all_its_fields(sst2, tmp_path):
    split(tmp_path / "out", data_dir=str(sst2), partition="dirichlet", min_size=5)
    parts = [saved_rows(tmp_path / f"out/client_{number}") for number in (1, 2, 3)]
    assert sorted((row for part in parts for row in part), key=lambda row: row["idx"]) == reviews(60)
    assert min(map(len, parts)) >= 5
    assert saved_rows(tmp_path / "out/validation") == reviews(8, first=100)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "client_1", "client_2", "client_3", "split.json", "test", "validation",
    ]  # fmt: skip


def test_what_was_done_is_written_down(sst2, tmp_path):
    split(tmp_path / "out", data_dir=str(sst2), partition="shards", labels_per_client=1, token="hf_secret")
    written = record(tmp_path / "out")
    assert written["seed"] == 1
    assert written["options"] == {
        "data_name": "sst2",
        "data_dir": str(sst2),
        "data_format": "auto",
        "columns": None,
        "train_limit": None,
        "num_clients": 3,
        "partition": "shards",
        "alpha": 0.5,
        "min_size": 1,
        "labels_per_client": 1,
        "field": None,
        "data_seed": 1,
        "output_path": str(tmp_path / "out"),
    }
    assert sum(written["sizes"][f"client_{number}"] for number in (1, 2, 3)) == 60
    assert written["sizes"]["validation"] == 8
    assert written["labels"]["validation"] == {"negative": 4, "positive": 4}
    for name in ("client_1", "client_2", "client_3"):
        rows = saved_rows(tmp_path / "out" / name)
        positive = sum(row["label"] for row in rows)
        assert written["labels"][name] == {"negative": len(rows) - positive, "positive": positive}
        assert positive in (0, len(rows)), "one label each"
    assert "hf_secret" not in (tmp_path / "out/split.json").read_text()


def test_it_prints_who_has_what(sst2, tmp_path, capsys):
    split(tmp_path / "out", data_dir=str(sst2))
    printed = capsys.readouterr()
    assert "client_3" in printed.out and "negative" in printed.out and "validation: 8 examples" in printed.out
    assert "test: 4 examples" in printed.out
    assert f"--dataset_path_template '{tmp_path}/out/client_{{i}}'" in printed.out
    assert f"--val_dataset_path_template '{tmp_path}/out/validation'" in printed.out
    assert printed.err == "", "no progress bars"


def test_clients_load_what_was_split(sst2, tmp_path):
    split(tmp_path / "out", data_dir=str(sst2))
    clients = load_clients(str(tmp_path / "out/client_{i}"), 3, TASKS["sst2"])
    assert [len(examples) for examples in clients] == [20, 20, 20]
    assert {example.question for examples in clients for example in examples} == {
        f"phrase {n}" for n in range(60)
    }
    (validation,) = load_validation(str(tmp_path / "out/validation"), 3, TASKS["sst2"])
    assert [example.label for example in validation] == ["negative", "positive"] * 4


def test_a_seed_makes_its_split_and_another_seed_another(sst2, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(tmp_path / name, data_dir=str(sst2), partition="quantity", data_seed=seed)
    first, again, other = (saved_rows(tmp_path / name / "client_1") for name in "abc")
    assert first == again != other


def test_what_training_holds_out_no_client_gets(tmp_path):
    write_rows(tmp_path / "train.jsonl", reviews(50))
    split(tmp_path / "out", data_dir=str(tmp_path / "train.jsonl"), data_seed=3)
    held = load_splits(TASKS["sst2"], data_dir=tmp_path / "train.jsonl", seed=3, token=None)
    clients = load_clients(str(tmp_path / "out/client_{i}"), 3, TASKS["sst2"])
    assert {example for own in clients for example in own} == set(held.train)
    (test,) = load_validation(str(tmp_path / "out/test"), 3, TASKS["sst2"])
    assert set(test) == set(held.test) and len(test) == 10


def test_the_embedded_task(tmp_path):
    split(tmp_path / "out", data_name="arithmetic", num_clients=4, partition="dirichlet", alpha=0.3)
    sizes = record(tmp_path / "out")["sizes"]
    assert sum(sizes[f"client_{number}"] for number in range(1, 5)) == 4000
    assert (sizes["validation"], sizes["test"]) == (200, 200)
    clients = load_clients(str(tmp_path / "out/client_{}"), 4, TASKS["arithmetic"])
    together = [example for examples in clients for example in examples]
    assert set(together) == set(TASKS["arithmetic"].embedded(1).train)


def test_problems_without_labels_are_split_by_size(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(50)]
    write_rows(tmp_path / "gsm8k/train.jsonl", rows)
    write_rows(tmp_path / "gsm8k/test.jsonl", rows[:5])
    options = {"data_name": "gsm8k", "data_dir": str(tmp_path / "gsm8k")}
    with pytest.raises(UserError, match=r"partition is dirichlet, .* --partition quantity"):
        split(tmp_path / "out", **options, partition="dirichlet")
    assert not (tmp_path / "out").exists(), "nothing is written before all is known"
    split(tmp_path / "out", **options, partition="quantity", min_size=4)
    written = record(tmp_path / "out")
    assert written["labels"]["test"] == {"no label": 5} and written["sizes"]["validation"] == 5
    assert min(written["sizes"][f"client_{number}"] for number in (1, 2, 3)) >= 4


def test_a_field_keeps_rows_together(tmp_path):
    rows = [{**row, "film": "abcde"[row["idx"] % 5]} for row in reviews(50)]
    write_rows(tmp_path / "train.jsonl", rows)
    options = {"data_dir": str(tmp_path / "train.jsonl"), "partition": "by_field"}
    split(tmp_path / "out", **options, field="film")
    films = [{row["film"] for row in saved_rows(tmp_path / f"out/client_{number}")} for number in (1, 2, 3)]
    assert sorted(film for own in films for film in own) == list("abcde")
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 1: field is 'author', but the row has none; .* 'film'"
    ):
        split(tmp_path / "other", **options, field="author")
    with pytest.raises(UserError, match="num_clients is 6, but the field has 5"):
        split(tmp_path / "other", **options, field="film", num_clients=6)


@pytest.mark.parametrize(("partition", "field"), [("by_field", None), ("iid", "film")])
def test_a_field_goes_with_its_partition(sst2, tmp_path, partition, field):
    with pytest.raises(UserError, match=rf"partition is {partition} and field is {field or 'none'}; --field"):
        split(tmp_path / "out", data_dir=str(sst2), partition=partition, field=field)


def test_a_folder_that_is_not_empty_stays_as_it_is(sst2, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"output_path '.*out' is not empty; give a folder that does not"):
        split(tmp_path / "out", data_dir=str(sst2))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"output_path '.*notes\.txt' is a file"):
        split(tmp_path / "out/notes.txt", data_dir=str(sst2))
    (tmp_path / "empty").mkdir()
    split(tmp_path / "empty", data_dir=str(sst2))
    assert (tmp_path / "empty/client_1").is_dir()


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([2**63 + n for n in range(20)], [str(2**63 + n) for n in range(20)]),
        ([-(2**70), *range(19)], [str(-(2**70)), *map(str, range(19))]),
        ([*range(19), "a12"], [*map(str, range(19)), "a12"]),
        ([float("nan"), *["x"] * 19], [None, *["x"] * 19]),
        ([2**63 - 1, *range(19)], [2**63 - 1, *range(19)]),
    ],
)
def test_ids_of_any_size_are_kept(tmp_path, values, kept):
    write_rows(
        tmp_path / "train.jsonl", [{**row, "id": v} for row, v in zip(reviews(20), values, strict=True)]
    )
    for part in ("validation", "test"):
        write_rows(tmp_path / f"{part}.jsonl", reviews(1, first=100))
    split(tmp_path / "out", data_dir=str(tmp_path), num_clients=1)
    assert [row["id"] for row in saved_rows(tmp_path / "out/client_1")] == kept


def test_a_place_that_cannot_be_written(sst2, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"output_path '.*file/out' cannot be written \(Not a directory\)"):
        split(tmp_path / "file/out", data_dir=str(sst2))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"output_path '.*loop' is a broken link"):
        split(tmp_path / "loop", data_dir=str(sst2))


def test_rows_with_fields_of_different_kinds(tmp_path):
    rows = reviews(20)
    rows[7]["idx"] = ["seven"]
    write_rows(tmp_path / "train.jsonl", rows)
    for part in ("validation", "test"):
        write_rows(tmp_path / f"{part}.jsonl", reviews(1, first=100))
    with pytest.raises(UserError, match=r"train\.jsonl, line 8: field 'idx' is .* of another kind"):
        split(tmp_path / "out", data_dir=str(tmp_path))
    rows[7].pop("idx")
    write_rows(tmp_path / "train.jsonl", rows)
    split(tmp_path / "out", data_dir=str(tmp_path), num_clients=1)
    assert [row["idx"] for row in saved_rows(tmp_path / "out/client_1")][6:9] == [6, None, 8]
