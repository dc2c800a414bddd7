import json
import re
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_files import write_rows

from fedloom.commands import view
from fedloom.commands.split import run_split
from fedloom.commands.view import count_clients, counts_table, draw, label_counts, run_view
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
PNG = b"\x89PNG\r\n\x1a\n"


def write_client(folder, number, labels):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"sentence": f"phrase {n}", "label": label} for n, label in enumerate(labels)]
    write_rows(folder / f"client_{number}.jsonl", rows)


@pytest.fixture
def two(tmp_path):
    write_client(tmp_path, 1, [0, 0, 1])
    write_client(tmp_path, 10, [1, 1, 1, 1])
    write_client(tmp_path, 2, [0])
    (tmp_path / "notes.txt").write_text("not a client")
    (tmp_path / "validation").mkdir()
    return tmp_path


def test_labels_are_what_stands_in_the_rows(two):
    counts = count_clients(two)
    assert list(counts) == ["client_1", "client_2", "client_10"], "in the order of the numbers"
    assert counts == {
        "client_1": {"0": 2, "1": 1},
        "client_2": {"0": 1, "1": 0},
        "client_10": {"0": 0, "1": 4},
    }


def test_a_split_knows_its_labels_names(two):
    (two / "split.json").write_text(json.dumps({"options": {"data_name": "sst2"}}))
    assert count_clients(two)["client_1"] == {"negative": 2, "positive": 1}
    (two / "split.json").write_text(json.dumps({"options": {"data_name": "qnli"}}))
    with pytest.raises(UserError, match=r"client_1\.jsonl, line 1: no field 'question', which qnli needs"):
        count_clients(two)
    for content in ("{}", "no json", '{"options": {"data_name": "other"}}', "[]"):
        (two / "split.json").write_text(content)
        with pytest.raises(UserError, match=r"split\.json' is not as `fedloom split` wrote it .*remove it"):
            count_clients(two)


def test_what_split_wrote_is_what_view_counts(tmp_path, capsys):
    for name, labels in (("train", [0, 1] * 20), ("test", [1, 1])):
        write_client(tmp_path, 1, labels)
        (tmp_path / "client_1.jsonl").rename(tmp_path / f"{name}.jsonl")
    run_split(
        data_name="sst2",
        data_dir=str(tmp_path),
        num_clients=4,
        partition="dirichlet",
        alpha=0.5,
        min_size=2,
        labels_per_client=2,
        field=None,
        data_seed=1,
        output_path=str(tmp_path / "out"),
        token=None,
    )
    written = json.loads((tmp_path / "out/split.json").read_text())["labels"]
    assert written.pop("test") == {"negative": 0, "positive": 2}
    assert sum(written.pop("validation").values()) > 0  # held out, since there is none
    assert count_clients(tmp_path / "out") == written
    capsys.readouterr()
    run_view(tmp_path / "out")
    printed = capsys.readouterr().out
    assert "client_4" in printed and "negative" in printed and "4 clients, of" in printed


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_a_table_has_a_column_for_each_of_a_few_labels():
    counts = label_counts({"client_1": ["positive", "positive"], "client_2": ["negative"]}, TASKS["sst2"])
    table = counts_table(counts, "sst2")
    assert [column.header for column in table.columns] == ["client", "examples", "negative", "positive"]
    assert cells(table) == [
        ["client_1", "client_2", "all"],
        ["2", "1", "3"],
        ["0", "1", "1"],
        ["2", "0", "2"],
    ]
    assert table.caption == "2 clients, of 1 to 2 examples"


def test_a_table_names_the_most_frequent_of_many_labels():
    counts = label_counts({"client_1": list("aaabbcdefgh"), "client_2": ["a"]}, None)
    table = counts_table(counts, "many")
    assert cells(table)[2][:2] == ["a 3, b 2, h 1, 5 more", "a 1"]


def test_brackets_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_client(Path("[bold]"), 1, ["[red]", "[/]"])
    run_view("[bold]")
    printed = capsys.readouterr().out
    assert "[red]" in printed and "[/]" in printed and "[bold]" in printed


def test_a_table_without_labels_has_sizes_alone():
    counts = label_counts({"client_1": ["", ""], "client_2": [""]}, TASKS["gsm8k"])
    assert counts == {"client_1": {"no label": 2}, "client_2": {"no label": 1}}
    assert cells(counts_table(counts, "gsm8k")) == [["client_1", "client_2", "all"], ["2", "1", "3"]]


def test_folders_without_clients(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' is not a folder; give one that holds client_1"):
        run_view(tmp_path / "nowhere")
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "client_one").mkdir()
    with pytest.raises(UserError, match=r"must hold client_1, .* it holds client_one, train\.jsonl"):
        run_view(tmp_path)


def test_a_picture_is_png_or_svg(two):
    with pytest.raises(UserError, match=r"bars\.pdf' ends in '\.pdf'; a picture is \.png or \.svg"):
        run_view(two, two / "bars.pdf")


def test_without_matplotlib_it_says_how_to_get_it(two, monkeypatch):
    monkeypatch.setattr(view, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs matplotlib; pip install 'fedloom\[plots\]'"):
        run_view(two, two / "bars.png")
    run_view(two)


@needs_matplotlib
def test_pictures_are_written_and_the_same_again(two, capsys):
    for name in ("pictures/bars.png", "pictures/bars.SVG"):
        run_view(two, two / name)
        first = (two / name).read_bytes()
        run_view(str(two), str(two / name))
        assert (two / name).read_bytes() == first
    assert (two / "pictures/bars.png").read_bytes().startswith(PNG)
    ElementTree.fromstring((two / "pictures/bars.SVG").read_bytes())
    assert f"Picture: {two}/pictures/bars.SVG" in capsys.readouterr().out


def counts_of(clients, labels):
    return {
        f"client_{number}": {label: number + place for place, label in enumerate(labels)}
        for number in range(1, clients + 1)
    }


@needs_matplotlib
@pytest.mark.parametrize(("clients", "last"), [(1, 1), (2, 2), (50, 50), (120, 118)])
def test_every_client_has_a_bar_and_as_many_a_number_as_fit(tmp_path, clients, last):
    draw(counts_of(clients, ["negative", "positive"]), tmp_path / "bars.svg")
    texts = re.findall("<!-- (.*?) -->", (tmp_path / "bars.svg").read_text())
    assert str(last) in texts and {"negative", "positive", "client", "examples"} <= set(texts)


@needs_matplotlib
def test_the_rarest_of_many_labels_are_one(tmp_path):
    labels = [f"label {number}" for number in range(20)]
    draw(counts_of(3, labels), tmp_path / "bars.svg")
    texts = re.findall("<!-- (.*?) -->", (tmp_path / "bars.svg").read_text())
    assert [text for text in texts if text.startswith("label")] == labels[5:]
    assert "others" in texts


@needs_matplotlib
def test_labels_that_mean_something_to_the_drawing_library(tmp_path):
    draw(
        counts_of(2, ["_hidden", "$x^2$ & <y>", "a very long label that goes on and on"]),
        tmp_path / "bars.svg",
    )
    text = (tmp_path / "bars.svg").read_text()
    for label in ("_hidden", "$x^2$ &amp; &lt;y&gt;", "a very long label that goes o…"):
        assert f"<!-- {label} -->" in text or f"<!--  {label} -->" in text, label


@needs_matplotlib
def test_a_picture_that_cannot_be_written(two):
    (two / "file").write_text("")
    with pytest.raises(UserError, match=r"bars\.png cannot be written .*choose another place"):
        run_view(two, two / "file/bars.png")
