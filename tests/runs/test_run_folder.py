"""What a run writes down of who holds what."""

import json

import numpy as np
import pytest
from run_files import write_rows
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main
from fedloom.data.encode import Tokens
from fedloom.runs.run_folder import client_counts, write_clients


def sequences(*kinds):
    return [Tokens([1, 2], 1, -1, kind=kind) for kind in kinds]


def test_labels_are_counted_client_by_client():
    train = sequences("b", "a", "b", "", "a")
    held = client_counts(train, [np.array([0, 2, 3]), np.array([1])], [sequences("a", "b")], server=1)
    assert held == {
        "examples": [3, 1],
        "labels": {"a": [0, 1], "b": [2, 0], "no label": [1, 0]},
        "validation": [2],
        "server": 1,
    }


def test_without_any_label_there_is_none_to_count():
    assert client_counts(sequences("", ""), [np.array([0, 1])], [[]])["labels"] == {}


def test_a_validation_list_that_all_share_is_counted_once_and_own_ones_each():
    train, shared = sequences("a"), sequences("a", "a")
    clients = [np.array([0])] * 3
    assert client_counts(train, clients, [shared] * 3)["validation"] == [2]
    own = [sequences("a"), sequences("a", "b"), sequences()]
    assert client_counts(train, clients, own)["validation"] == [1, 2, 0]


def test_a_thousand_clients_take_kilobytes(tmp_path):
    train = sequences(*["negative", "positive"] * 500)
    write_clients(tmp_path, train, [np.arange(1000)] * 1000, [train] * 1000)
    assert (tmp_path / "clients.json").stat().st_size < 20_000


COMMON = "--dtype float32 --report_to none --wave_tokens 400 --seed 3"


@pytest.mark.parametrize("mode", ["fed", "fedGradFocus", "local"])
def test_runs_with_a_server_leave_it(tmp_path, mode):
    rows = [
        {"question": f"{i} and 1?" + " long" * 99 * (i == 0), "answer": f"{i} + 1 = {i + 1}", "label": kind}
        for i in range(9)
        for kind in ("add", "divide")
    ]
    for part in ("train", "validation", "test"):
        write_rows(tmp_path / f"{part}.jsonl", rows)
    model = save_tiny_llama(tmp_path / "model")
    words = f"fed --model_name {model} --data_name arithmetic --data_dir {tmp_path} --train_mode {mode}"
    words += f" --client_num 2 --client_num_per_step 1 --max_steps 1 --max_length 150 --lora_r 2 {COMMON}"
    assert main([*words.split(), "--out_dir", str(tmp_path), "--exp_name", "a"]) == 0
    held = json.loads((tmp_path / "a" / "clients.json").read_text())
    clients, server = {"fed": (2, 0), "fedGradFocus": (2, 2), "local": (1, 0)}[mode]
    assert len(held["examples"]) == clients and held["server"] == server and held["validation"] == [16]
    assert sum(held["examples"]) == 16 - server, "without the two that are too long"
    assert set(held["labels"]) == {"add", "divide"}
    by_client = [sum(counts) for counts in zip(*held["labels"].values(), strict=True)]
    assert by_client == held["examples"]


def test_runs_of_peers_leave_it(tmp_path):
    for client, count in ((1, 4), (2, 6), (3, 5)):
        rows = [{"sentence": f"words {i}", "label": int(i < client)} for i in range(count)]
        write_rows(tmp_path / f"client_{client}.jsonl", rows)
    template = tmp_path / "client_{i}.jsonl"
    words = f"dfl --model_checkpoint {save_tiny_bert(tmp_path / 'model')} --dataset_path_template {template}"
    words += f" --val_dataset_path_template {template} --num_clients 3 --name ring --num_rounds 1 {COMMON}"
    assert main([*words.split(), "--out_dir", str(tmp_path), "--exp_name", "a"]) == 0
    assert json.loads((tmp_path / "a" / "clients.json").read_text()) == {
        "examples": [4, 6, 5],
        "labels": {"negative": [3, 4, 2], "positive": [1, 2, 3]},
        "validation": [4, 6, 5],
        "server": 0,
    }
