"""Whether data have changed, of all that a path given for data may stand for."""

import pytest

from fedloom.data.stamps import stamps


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ({"data_dir": "."}, "train.jsonl"),
        ({"data_dir": "."}, "data/train/part-0.parquet"),
        ({"data_dir": "train.csv"}, "train.csv"),
        ({"name": "./rows/*.jsonl"}, "rows/b.jsonl"),
        ({"name": "./**/*.jsonl"}, "far/below/all/of/it.jsonl"),
        ({"name": "rows.json"}, "rows.json"),
        ({"templates": [None, "client_{i}"]}, "client_2/train.jsonl"),
    ],
)
def test_a_file_that_comes_changes_or_goes_changes_the_stamp(given, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def now():
        return stamps(**{"name": "qa", "data_dir": None, "templates": [], "num_clients": 2} | given)

    before = now()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    come = now()
    assert come == now() and come.keys() == before.keys() and come != before
    path.write_text("12")
    assert now() not in (come, before)
    path.unlink()
    assert now() == before


def test_what_is_not_of_the_users_files_has_no_stamp(tmp_path):
    (tmp_path / ".hidden").write_text("1")
    assert stamps("arithmetic", None, [None], 3) == stamps("owner/name", None, [], 3) == {}
    assert stamps("arithmetic", str(tmp_path), [], 3) == {str(tmp_path): frozenset()}
