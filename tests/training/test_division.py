"""Who trains on what: `--partition` and clients' own folders, through the commands."""

import json

import pytest
from tiny import save_tiny_llama

from fedloom import read_run
from fedloom.commands.cli import main

WARDS = {"north": 30, "east": 12, "south": 6}


def rows(ward, count):
    return [
        {"question": f"Bed {i} in {ward}?", "answer": f"Ward {ward}", "label": "ab"[i % 2], "ward": ward}
        for i in range(count)
    ]


def jsonl(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def wards(tmp_path_factory):
    """One data set of 48 training examples from three wards, and the folders that `split` makes of it."""
    folder = tmp_path_factory.mktemp("wards")
    jsonl(folder / "train.jsonl", [row for ward, count in WARDS.items() for row in rows(ward, count)])
    jsonl(folder / "validation.jsonl", rows("west", 4))
    jsonl(folder / "test.jsonl", rows("west", 4))
    words = f"split --data_name qa --data_dir {folder} --num_clients 3 --partition by_field --field ward"
    assert main([*words.split(), "--output_path", str(folder / "clients")]) == 0
    return folder


@pytest.fixture
def fed(model, wards, tmp_path):
    """Runs `fedloom fed` on tiny things; returns the exit status and what clients.json says."""

    def run(*flags, data=("--data_dir", str(wards))):
        words = f"fed --model_name {model} --data_name qa --out_dir {tmp_path} --train_mode fed --lora_r 2"
        words += " --client_num 3 --client_num_per_step 2 --client_batch_per_step 1 --grad_accum_steps 1"
        words += (
            " --max_steps 1 --val_steps 1 --report_to none --dtype float32 --max_length 100 --wave_tokens 900"
        )
        status = main([*words.split(), *data, *map(str, flags)])
        path = tmp_path / "test" / "clients.json"
        return status, json.loads(path.read_text()) if status == 0 else None

    return run


def folders(wards):
    template, judged = f"{wards}/clients/client_{{i}}", f"{wards}/clients/validation"
    return ["--dataset_path_template", template, "--val_dataset_path_template", judged]


def test_a_server_has_clients_of_uneven_labels_and_sizes(fed):
    _, held = fed("--partition", "shards", "--labels_per_client", 1, "--fed_alg", "FedProx")
    assert sum(held["examples"]) == 48
    assert all(0 in pair for pair in zip(*held["labels"].values(), strict=True)), "one label each"


def test_sizes_are_uneven_but_none_is_below_the_smallest_allowed(fed, capsys):
    _, held = fed("--partition", "quantity", "--alpha", 0.1, "--exp_name", "test")
    assert sum(held["examples"]) == 48 and min(held["examples"]) >= 1
    assert max(held["examples"]) > 30, "uneven"


@pytest.mark.parametrize("mode", ["fed", "fedGradFocus", "local"])
def test_examples_of_one_value_of_a_field_stay_together(fed, mode):
    _, held = fed("--partition", "by_field", "--field", "ward", "--train_mode", mode)
    clients = list(zip(*held["labels"].values(), strict=True))
    if mode == "local":
        assert held["examples"] == [48], "one model on all data"
        return
    assert all(sum(count > 0 for count in own) == 1 for own in clients), "a ward each"
    assert sum(held["examples"]) + held["server"] == 48
    assert held["server"] == (2 if mode == "fedGradFocus" else 0)


def test_peers_divide_by_a_field_too(model, wards, tmp_path):
    words = f"dfl --model_checkpoint {model} --dataset_type qa --data_dir {wards} --num_clients 3 --name ring"
    words += f" --num_rounds 1 --local_steps 1 --batch_size 2 --lora_r 2 --out_dir {tmp_path}"
    words += " --report_to none --dtype float32 --partition by_field --field ward"
    assert main(words.split()) == 0
    held = json.loads((tmp_path / "test" / "clients.json").read_text())
    assert sorted(held["examples"]) == sorted(WARDS.values())


def test_clients_of_a_server_bring_the_folders_that_split_writes(fed, wards, tmp_path):
    status, held = fed(*folders(wards), data=())
    assert status == 0
    assert held == {
        "examples": [30, 12, 6],
        "labels": {"a": [15, 6, 3], "b": [15, 6, 3]},
        "validation": [4],
        "server": 0,
    }
    assert read_run(tmp_path / "test").rows[-1]["val_loss"] > 0


def test_with_folders_the_server_scores_layers_by_a_data_set_of_its_own(fed, wards):
    _, held = fed(*folders(wards), "--train_mode", "fedGradFocus")
    assert held["examples"] == [30, 12, 6] and held["server"] == 48


def test_folders_and_one_model_on_all_of_them(fed, wards):
    _, held = fed(*folders(wards), "--train_mode", "local", data=())
    assert held["examples"] == [48]


def test_a_client_with_far_less_than_others_is_told_of(fed, wards, tmp_path, caplog):
    jsonl(tmp_path / "own" / "1.jsonl", rows("north", 60))
    jsonl(tmp_path / "own" / "2.jsonl", rows("east", 59))
    jsonl(tmp_path / "own" / "3.jsonl", rows("south", 1))
    own = ["--dataset_path_template", f"{tmp_path}/own/{{i}}.jsonl"]
    assert fed(*own)[0] == 0
    assert "the 3 clients have 1 to 60 training examples, client 3 the fewest" in caplog.text


def test_no_client_is_left_with_nothing(fed, wards, tmp_path, capsys):
    jsonl(tmp_path / "own" / "1.jsonl", rows("north", 6))
    jsonl(tmp_path / "own" / "2.jsonl", rows("east", 6))
    jsonl(tmp_path / "own" / "3.jsonl", rows("south " * 200, 6))
    own = ["--dataset_path_template", f"{tmp_path}/own/{{i}}.jsonl"]
    assert fed(*own)[0] == 2
    assert "client 3: max_length is 100, and none of the 6 examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--partition quantity --min_size 20", "client_num is 3 and min_size 20, which needs 60 examples"),
        ("--min_size 20", "min_size: 20, but client 1 has 16 training examples"),
        ("--partition dirichlet --client_num 50", "client_num is 50 and min_size 1, which needs 50"),
        ("--partition by_field", "partition is by_field and field is none; --field NAME goes with"),
        ("--field ward", "partition is iid and field is ward"),
        (
            "--partition by_field --field bed",
            "field is 'bed', but the row has none; its fields are 'question'",
        ),
        ("--partition by_field --field ward --client_num 4", "client_num is 4, but the field has 3"),
        ("--partition shards --dataset_path_template x/{i}", "partition: shards divides one data set, and"),
        ("--dataset_path_template x/{i}", "needs 'x/1', 'x/2', 'x/3', which cannot be found"),
        ("--dataset_path_template train.jsonl", "is the same for all 3 clients; write {i}"),
    ],
)
def test_what_cannot_be_is_told(fed, capsys, flags, said):
    assert fed(*flags.split())[0] == 2
    assert said in capsys.readouterr().err


def test_folders_need_something_to_validate_on(fed, wards, capsys):
    assert fed(*folders(wards)[:2], data=())[0] == 2
    assert "val_dataset_path_template: is needed beside dataset_path_template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dataset_path_template x/{i}", "dataset_path_template: over Flower every client reads its own"),
        (
            "--client_data node --partition quantity",
            "partition: quantity divides one data set, and with client",
        ),
    ],
)
def test_over_flower_a_clients_folder_is_its_own_machines(model, tmp_path, capsys, flags, said):
    words = f"flower --model_name {model} --data_name arithmetic --output_path {tmp_path}/app {flags}"
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err
