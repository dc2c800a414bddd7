"""`--resume`, and `resume=True` from Python: only with what the run has read so far."""

import shutil

import pytest
from run_files import write_rows
from tiny import save_tiny_bert, save_tiny_llama

from fedloom import DflConfig, FedConfig, run_dfl, run_fed
from fedloom.commands.cli import main

ROWS = 24


def problems(count, more=0):
    return [{"question": f"Ann has {i} pears. How many?", "final_ans": i + more} for i in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data, and a run of two rounds with them."""
    place = tmp_path_factory.mktemp("place")
    save_tiny_llama(place / "model")
    write_rows(place / "data" / "train.jsonl", problems(ROWS))
    write_rows(place / "data" / "validation.jsonl", problems(4))
    write_rows(place / "data" / "test.jsonl", problems(4))
    run_fed(config(place))
    return place


def config(place, **more):
    small = {"client_num": 3, "client_num_per_step": 2, "client_batch_per_step": 1, "grad_accum_steps": 1}
    options = {"max_steps": 2, "val_steps": 1, "patience": 0, "lora_r": 2, "report_to": "none"} | small | more
    return FedConfig(
        exp_name="run",
        out_dir=str(place / "runs"),
        model_name=str(place / "model"),
        data_name="ChilleD/MultiArith",
        data_dir=str(place / "data"),
        train_mode="fed",
        **options,
    )


def resume(place, rounds):
    words = f"fed --exp_name run --out_dir {place}/runs --resume --max_steps {rounds}"
    return main(words.split())


@pytest.fixture
def copy(place, tmp_path):
    """The place, to be spoiled; afterwards it is as it was."""
    shutil.copytree(place, tmp_path / "before")
    yield place
    for path in place.iterdir():
        shutil.rmtree(path)
    shutil.copytree(tmp_path / "before", place, dirs_exist_ok=True)


def other_tokens(place):
    path = place / "model" / "chat_template.jinja"
    path.write_text(path.read_text().replace("user", "User") + " ")


def one_layer_more(place):
    save_tiny_llama(place / "model", num_hidden_layers=3)


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda place: write_rows(place / "data" / "train.jsonl", problems(ROWS)[::-1]), "training data"),
        (
            lambda place: write_rows(place / "data" / "train.jsonl", problems(ROWS + 1)),
            "now there are 25 examples",
        ),
        (
            lambda place: write_rows(place / "data" / "validation.jsonl", problems(4, more=1)),
            "validation data",
        ),
        (other_tokens, "tokens of the data"),
        (lambda place: save_tiny_llama(place / "model", seed=7), "base weights"),
        (one_layer_more, "settings of the base"),
    ],
)
def test_other_inputs_than_the_run_began_with_are_refused(copy, capsys, spoil, told):
    spoil(copy)
    before = {path: path.read_bytes() for path in (copy / "runs").rglob("*.*") if path.is_file()}
    assert resume(copy, 3) == 2
    said = capsys.readouterr().err
    assert told in said and "not those of the run" in said and "another --exp_name" in said
    assert {path: path.read_bytes() for path in before} == before


def test_the_same_inputs_written_again_are_the_same(copy):
    write_rows(copy / "data" / "train.jsonl", problems(ROWS))
    save_tiny_llama(copy / "model")
    assert resume(copy, 3) == 0


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda text: text.replace("lr: 0.0005", "lr: 0.0006"), "has another value"),
        (lambda text: text.split("run:")[0], "its end is missing"),
    ],
)
def test_options_are_those_that_were_written(copy, capsys, spoil, told):
    """Edited by hand, or cut off: a missing option would silently be the default."""
    saved = copy / "runs" / "run" / "config.yaml"
    whole = saved.read_text()
    saved.write_text(spoil(whole))
    assert resume(copy, 3) == 2 and told in capsys.readouterr().err
    saved.write_text(whole.replace("max_steps: 2", "max_steps: 3"))
    assert main(f"fed --exp_name run --out_dir {copy}/runs --resume".split()) == 0, "a free one may change"


def test_a_run_without_digests_goes_on_with_a_warning(copy, caplog):
    saved = copy / "runs" / "run" / "config.yaml"
    saved.write_text(saved.read_text().split("  inputs:")[0])
    assert resume(copy, 3) == 0 and "no digests of data and base" in caplog.text
    assert "base weights" in saved.read_text()


def test_resume_from_python_with_the_same_values(copy):
    """What was `auto` is what it was when the run began, though config.yaml has a name for it."""
    again = run_fed(config(copy, max_steps=3, resume=True))
    assert again.options["dtype"] == "float32" and config(copy).dtype == "auto"
    assert [row["round"] for row in again.rows] == [0, 1, 2, 3] and again.finished


def test_another_graph_in_the_same_file_is_refused(tmp_path, capsys):
    save_tiny_bert(tmp_path / "bert")
    films = [{"sentence": f"{'good' if i % 2 else 'bad'} {i}", "label": i % 2} for i in range(16)]
    write_rows(tmp_path / "films" / "train.jsonl", films)
    write_rows(tmp_path / "films" / "validation.jsonl", films[:4])
    (tmp_path / "graph.txt").write_text("1 2\n2 3\n")
    options = {"model_checkpoint": str(tmp_path / "bert"), "data_dir": str(tmp_path / "films")}
    options |= {"exp_name": "run", "out_dir": str(tmp_path), "report_to": "none", "save_every": 1}
    graph = {"num_clients": 3, "name": f"file:{tmp_path}/graph.txt", "local_steps": 1, "batch_size": 4}
    run_dfl(DflConfig(**options, **graph, num_rounds=1))
    (tmp_path / "graph.txt").write_text("1 2\n1 3\n")
    assert main(f"dfl --out_dir {tmp_path} --exp_name run --resume --num_rounds 2".split()) == 2
    assert "links of the graph are not those of the run" in capsys.readouterr().err
