"""`fedloom dfl` from the command line to the folder it leaves, on a tiny encoder and a few sentences."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from processes import start, wait_for_rows
from run_files import adapter, assert_close, rows, write_problems, write_rows
from tiny import save_tiny_bert, save_tiny_llama
from transformers import AutoModelForSequenceClassification

from fedloom.commands.cli import main
from fedloom.report.peers import accuracies
from fedloom.runs.record import read_run

GOOD, BAD = (
    ["a fine film", "warm and wise", "great fun", "truly good"],
    ["dull", "a bore", "sad mess", "weak"],
)


def sentences(count):
    return [{"sentence": f"{(GOOD, BAD)[i % 2][i // 2 % 4]} {i}", "label": 1 - i % 2} for i in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", sentences(40))
    write_rows(folder / "validation.jsonl", sentences(12))
    return folder


def arguments(model, data, out_dir, name, *flags):
    words = (
        f"dfl --model_checkpoint {model} --data_dir {data} --out_dir {out_dir} --exp_name {name} --lr 0.01"
    )
    words += " --num_clients 4 --name ring --num_rounds 4 --batch_size 4 --dtype float32 --report_to none"
    words += " --save_every 2 --wave_tokens 600"
    return [*words.split(), *flags]


@pytest.fixture
def dfl(model, data, tmp_path):
    """Runs `fedloom dfl` with small numbers; returns the exit status and the run's folder."""

    def run(name, *flags):
        return main(arguments(model, data, tmp_path, name, *flags)), tmp_path / name

    return run


def size(row, *parts):
    return sum(t.numel() * 4 for name, t in row.items() if any(part in name for part in parts))


@pytest.fixture(scope="module")
def one_run(model, data, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs")
    assert main(arguments(model, data, out_dir, "run", "--training_type", "LoRA")) == 0
    return out_dir / "run"


def test_a_run_leaves_what_the_docs_promise(one_run):
    assert [row["round"] for row in rows(one_run)] == [0, 1, 2, 3, 4]
    last = rows(one_run)[-1]
    assert len(last["peer_val_accuracy"]) == len(last["peer_train_loss"]) == 4
    assert last["val_accuracy"] == pytest.approx(sum(last["peer_val_accuracy"]) / 4)
    assert last["val_accuracy_min"] == min(last["peer_val_accuracy"])
    assert last["val_accuracy_max"] == max(last["peer_val_accuracy"])
    assert last["consensus_error"] > 0 and 0 < last["consensus_error_relative"] < 10
    assert last["bytes_up"] == last["bytes_down"] == 4 * 2 * size(adapter(one_run, peer=1), "")
    assert last["train_loss"] < rows(one_run)[1]["train_loss"]
    summary = json.loads((one_run / "summary.json").read_text())
    assert 0 <= summary["averaged_adapter"]["accuracy"] <= 1
    log = (one_run / "federated_training.log").read_text()
    assert log.count("consensus error") == 5 and "round 4:" in log
    assert yaml.safe_load((one_run / "config.yaml").read_text())["training_type"] == "LoRA"


def test_a_peers_adapter_loads_with_peft_and_judges_as_the_run_did(one_run, model):
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    tuned = PeftModel.from_pretrained(base, one_run / "checkpoints" / "round-000004" / "peer-0002").eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    judged = sentences(12)
    right = [
        int(tuned(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax()) == row["label"]
        for row in judged
    ]
    assert rows(one_run)[-1]["peer_val_accuracy"][1] == pytest.approx(sum(right) / len(right))


def test_of_many_peers_some_are_told_of_and_the_run_is_the_same(dfl, one_run):
    status, folder = dfl("some", "--training_type", "LoRA", "--eval_peers", "2")
    assert status == 0
    shown = rows(folder)[-1]["evaluated_peers"]
    assert rows(folder)[0]["evaluated_peers"] == shown and len(rows(folder)[0]["peer_val_accuracy"]) == 2
    for ours, whole in zip(rows(folder)[1:], rows(one_run)[1:], strict=True):
        for name in ("train_loss", "consensus_error", "bytes_up"):
            assert ours[name] == whole[name]
        for name in ("peer_train_loss", "peer_val_accuracy", "peer_val_loss"):
            assert ours[name] == pytest.approx([whole[name][peer] for peer in shown], abs=1e-6)
        assert ours["val_accuracy"] == pytest.approx(sum(ours["peer_val_accuracy"]) / 2)
    names = [path.name for path in sorted((folder / "checkpoints" / "round-000004").glob("peer-*"))]
    assert names == [f"peer-{peer + 1:04d}" for peer in shown]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, one_run)]
    assert summaries[0]["averaged_adapter"] == pytest.approx(summaries[1]["averaged_adapter"])
    (figure,) = accuracies(read_run(folder))
    assert [trace["name"] for trace in figure.traces] == [f"peer {peer + 1}" for peer in shown]


def test_of_peers_of_which_some_attack_those_that_do_not_are_evaluated(dfl):
    attack = ("--attack", "sign_flip", "--attackers", "2", "--num_rounds", "1", "--eval_peers", "3")
    status, folder = dfl("attacked", *attack)
    assert status == 0 and len(rows(folder)[-1]["evaluated_peers"]) == 2


@pytest.mark.parametrize("training_type", ["DFL-LoRA", "ConLoRA"])
def test_frozen_a_stays_what_it_was_for_everybody_and_is_never_sent(dfl, training_type):
    _, folder = dfl("frozen", "--training_type", training_type)
    one, other = adapter(folder, peer=1), adapter(folder, peer=3)
    for name in one:
        if "lora_A" in name:
            assert torch.equal(one[name], other[name])
    assert rows(folder)[-1]["bytes_up"] == 4 * 2 * size(one, "lora_B", "classifier")
    assert rows(folder)[-1]["consensus_error"] > 0


def test_the_head_may_stay_with_its_peer(dfl):
    _, folder = dfl("head", "--mix_head", "false", "--name", "complete", "--num_rounds", "4")
    heads = [
        next(t for name, t in adapter(folder, peer=peer).items() if "classifier.weight" in name)
        for peer in (1, 2)
    ]
    assert not torch.equal(*heads)
    assert rows(folder)[-1]["bytes_up"] == 4 * 3 * size(adapter(folder, peer=1), "lora_B")
    assert rows(folder)[-1]["consensus_error"] == pytest.approx(0, abs=1e-4)


def test_before_mixing_peers_are_further_apart_than_after(dfl):
    flags = ["--name", "complete", "--num_rounds", "1"]
    _, after = dfl("after", *flags)
    _, before = dfl("before", *flags, "--eval_point", "before")
    assert rows(before)[-1]["consensus_error"] > 100 * rows(after)[-1]["consensus_error"]


def test_the_size_of_a_wave_changes_nothing(dfl):
    _, large = dfl("large", "--wave_tokens", "100000", "--num_rounds", "2")
    _, small = dfl("small", "--wave_tokens", "1", "--num_rounds", "2")
    assert_close(adapter(small, peer=1), adapter(large, peer=1), tolerance=2e-4)


def test_each_optimiser_takes_steps_of_its_own_that_lower_the_loss(dfl):
    """A peer's ten sentences are one batch: the losses of both rounds are of the same examples."""
    flags = "--batch_size 16 --num_rounds 2 --client_optimizer"
    folders = [dfl(optimiser, *flags.split(), optimiser)[1] for optimiser in ("adam", "adamw", "sgd")]
    for folder in folders:
        assert rows(folder)[2]["train_loss"] < rows(folder)[1]["train_loss"] - 1e-3, folder.name
    for one, other in combinations([adapter(folder, peer=1) for folder in folders], 2):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_peers_and_links_drop_out_and_come_back(dfl):
    _, folder = dfl("faults", "--drop_peer", "0.4", "--drop_link", "0.2", "--num_rounds", "8")
    out = [row["peers_out"] for row in rows(folder)[1:]]
    assert any(out) and not all(len(peers) == 4 for peers in out)
    for row in rows(folder)[1:]:
        assert [loss is None for loss in row["peer_train_loss"]] == [p in row["peers_out"] for p in range(4)]
    assert len({row["bytes_up"] for row in rows(folder)[1:]}) > 1


@pytest.mark.parametrize("graph", ["star", "one_peer_exponential", "random_pairs"])
def test_graphs_by_name(dfl, graph):
    status, folder = dfl("graph", "--name", graph, "--num_rounds", "2")
    assert status == 0 and math.isfinite(rows(folder)[-1]["consensus_error"])


def test_clients_bring_their_own_folders(dfl, model, tmp_path):
    for peer in range(1, 4):
        write_rows(tmp_path / f"client_{peer}.jsonl", sentences(6 * peer))
        write_rows(tmp_path / f"judge_{peer}.jsonl", sentences(4))
    flags = f"--model_checkpoint {model} --num_clients 3 --name ring --num_rounds 1 --batch_size 4"
    flags += " --report_to none"
    flags += f" --out_dir {tmp_path} --exp_name own --dataset_path_template {tmp_path}/client_{{i}}.jsonl"
    flags += f" --val_dataset_path_template {tmp_path}/judge_{{}}.jsonl --dtype float32"
    assert main(["dfl", *flags.split()]) == 0
    assert rows(tmp_path / "own")[-1]["round"] == 1


def test_pairs_of_texts_and_a_head_for_other_classes_is_replaced_aloud(model, tmp_path, caplog):
    pairs = [{"premise": f"it is {i}", "hypothesis": f"it is {i + i % 3}", "label": i % 3} for i in range(30)]
    write_rows(tmp_path / "train.jsonl", pairs)
    write_rows(tmp_path / "validation_matched.jsonl", pairs[:9])
    words = arguments(model, tmp_path, tmp_path, "mnli", "--dataset_type", "mnli", "--num_rounds", "1")
    assert main(words) == 0
    assert len(rows(tmp_path / "mnli")[-1]["peer_val_accuracy"]) == 4
    assert "head is for 2 classes, the task has 3" in caplog.text


def test_causal_models_write_answers_and_encoders_name_the_operation(model, tmp_path):
    llama = save_tiny_llama(tmp_path / "llama")
    write_problems(tmp_path)
    for name, checkpoint in (("writes", llama), ("names", model)):
        words = f"dfl --model_checkpoint {checkpoint} --dataset_type arithmetic --data_dir {tmp_path}"
        words += " --num_clients 3 --num_rounds 1 --name ring --local_steps 2 --batch_size 2 --dtype float32"
        words += f" --report_to none --out_dir {tmp_path} --exp_name {name}"
        assert main(words.split()) == 0
        saved = adapter(tmp_path / name, 1, 1)
        assert any("classifier" in key for key in saved) == (name == "names")


def test_a_killed_run_resumes_to_the_adapters_of_one_never_killed(dfl, model, data, tmp_path):
    flags = ["--num_rounds", "12", "--drop_peer", "0.2"]
    _, whole = dfl("whole", *flags)
    process = start(arguments(model, data, tmp_path, "killed", *flags), tmp_path / "log")
    wait_for_rows(tmp_path / "killed", 6, process.is_alive)
    process.kill()
    process.join()
    assert main(["dfl", "--out_dir", str(tmp_path), "--exp_name", "killed", "--resume"]) == 0
    for peer in (1, 4):
        assert_close(adapter(tmp_path / "killed", 12, peer), adapter(whole, 12, peer))
    for ours, theirs in zip(rows(tmp_path / "killed"), rows(whole), strict=True):
        assert ours["peer_val_accuracy"] == theirs["peer_val_accuracy"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_clients", "1"], ["num_clients", "1", "at least 2"]),
        (["--name", "rign"], ["rign", "ring"]),
        (["--name", "link4"], ["link4", "7"]),
        (["--name", "file:nowhere.txt"], ["nowhere.txt"]),
        (["--data_dir", "nowhere"], ["nowhere"]),
        (["--model_checkpoint", "./nowhere"], ["./nowhere"]),
        (["--min_size", "30"], ["min_size", "30"]),
        (["--dataset_type", "sst"], ["sst", "sst2"]),
        (["--target_modules", "quary"], ["quary", "query"]),
        (["--device", "cuda:9"], ["cuda:9"]),
        (["--drop_peer", "1.5"], ["drop_peer", "1.5"]),
    ],
)
def test_a_mistake_is_told_in_one_message(dfl, capsys, flags, words):
    status, folder = dfl("mistake", *flags)
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("fedloom: error:") and "Traceback" not in said
    assert all(word in said for word in words), said
    assert not (folder / "config.yaml").exists()


def test_a_template_needs_a_place_for_the_number(model, tmp_path, capsys):
    write_rows(tmp_path / "all.jsonl", sentences(4))
    words = f"dfl --model_checkpoint {model} --dataset_path_template {tmp_path}/all.jsonl --num_clients 3"
    words += " --name ring"
    assert main([*words.split(), "--out_dir", str(tmp_path)]) == 2
    assert "{i}" in capsys.readouterr().err


def test_clients_folders_are_not_judged_by_what_might_be_in_them(model, data, tmp_path, capsys):
    for peer in (1, 2, 3):
        write_rows(tmp_path / f"client_{peer}.jsonl", sentences(8))
    words = (
        f"dfl --model_checkpoint {model} --dataset_path_template {tmp_path}/client_{{i}}.jsonl --name ring"
    )
    words += f" --num_clients 3 --num_rounds 1 --report_to none --dtype float32 --out_dir {tmp_path}"
    (tmp_path / "only").mkdir()
    write_rows(tmp_path / "only" / "train.jsonl", sentences(20))
    assert main([*words.split(), "--data_dir", str(tmp_path / "only")]) == 2
    assert "val_dataset_path_template: is needed" in capsys.readouterr().err
    assert main([*words.split(), "--data_dir", str(data)]) == 0


def test_without_a_model_there_is_nothing_to_train(capsys):
    assert main(["dfl"]) == 2
    assert "model_checkpoint: is required" in capsys.readouterr().err


def test_log_path_may_lie_elsewhere(dfl, tmp_path):
    dfl("run", "--log_path", str(tmp_path / "logs" / "mine.log"), "--num_rounds", "1")
    assert "round 1:" in Path(tmp_path / "logs" / "mine.log").read_text()
