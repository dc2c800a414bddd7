"""`fedloom fed` from the command line to the folder it leaves, on a tiny model and a few problems."""

import json
import math
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from peft import PeftModel
from processes import rows_written, start, wait_for_rows
from run_files import adapter, assert_close, rows, write_rows
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM

from fedloom.commands.cli import main
from fedloom.model.bank import usable
from fedloom.runs.checkpoint import latest_checkpoint, round_of

PROBLEMS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", PROBLEMS), ("validation", 8), ("test", 4)):
        rows = [
            {
                "question": f"Ann has {i} pears and finds {part[0]} {i % 7} more. How many?",
                "final_ans": i + i % 7,
            }
            for i in range(count)
        ]
        write_rows(folder / f"{part}.jsonl", rows)
    return folder


@pytest.fixture
def fed(model, data, tmp_path):
    """Runs `fedloom fed` with small numbers; returns the exit status and the run's folder."""

    def run(name, *flags, out_dir=tmp_path):
        return main(arguments(model, data, out_dir, name, *flags)), Path(out_dir) / name

    return run


def arguments(model, data, out_dir, name, *flags):
    words = f"fed --model_name {model} --data_dir {data} --data_name ChilleD/MultiArith --out_dir {out_dir}"
    words += f" --exp_name {name} --train_mode fed --client_num 6 --client_num_per_step 3 --dtype float32"
    words += " --client_batch_per_step 4 --max_steps 4 --val_steps 2 --report_to none --wave_tokens 600"
    return [*words.split(), "--client-lr", "0.05", "--lora_r", "4", *flags]


@pytest.fixture(scope="module")
def one_run(model, data, tmp_path_factory):
    """The folder of a run with all that there is by default."""
    out_dir = tmp_path_factory.mktemp("runs")
    flags = ["--token", "hf_secret", "--report_to", "tensorboard"]
    assert main(arguments(model, data, out_dir, "run", *flags)) == 0
    return out_dir / "run"


def test_a_run_leaves_what_the_docs_promise(one_run):
    assert [row["round"] for row in rows(one_run)] == [0, 1, 2, 3, 4]
    last = rows(one_run)[-1]
    size = sum(t.numel() * 4 for t in adapter(one_run).values())
    assert last["bytes_up"] == last["bytes_down"] == 3 * size
    assert len(set(last["clients"])) == 3 and set(last["clients"]) <= set(range(6))
    assert last["tokens"] > 0 and last["seconds"] > 0 and math.isfinite(last["val_loss"])
    summary = json.loads((one_run / "summary.json").read_text())
    assert summary["rounds"] == 4 and summary["totals"]["bytes_up"] == 4 * 3 * size
    saved = yaml.safe_load((one_run / "config.yaml").read_text())
    assert saved["dtype"] == "float32" and saved["run"]["versions"]["torch"] == torch.__version__
    assert not any("hf_secret" in p.read_text(errors="ignore") for p in one_run.rglob("*") if p.is_file())
    assert list(one_run.glob("events.out.tfevents.*"))


def test_the_adapter_loads_with_peft_and_changes_the_model(one_run, model):
    base = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([[5, 60, 70, 80]])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, one_run / "checkpoints" / "round-000004")(ids).logits
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("peft", ["lora", "p-tuning", "prompt-tuning"])
@pytest.mark.parametrize("algorithm", ["FedAdam", "FedAVG", "FedProx"])
def test_every_algorithm_and_every_kind_of_adapter_learns(fed, algorithm, peft):
    """Both clients train twice on all that they have: the losses of both rounds are of the same examples."""
    lr = "0.01" if algorithm == "FedAdam" else "0.2"
    flags = f"--fed_alg {algorithm} --peft {peft} --lr {lr} --max_steps 2 --val_steps 1"
    flags += "" if peft == "lora" else " --num_virtual_tokens 4"
    flags += " --client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --batch_size 30"
    flags += " --client_epoch 2 --grad_accum_steps 1"
    status, folder = fed("run", *flags.split())
    assert status == 0
    assert rows(folder)[-1]["val_loss"] < rows(folder)[0]["val_loss"]
    assert rows(folder)[2]["train_loss"] < rows(folder)[1]["train_loss"]
    first, last = adapter(folder, 1), adapter(folder, 2)
    assert all(not torch.equal(first[name], last[name]) for name in last)


def test_fedprox_without_its_term_is_fedavg(fed):
    flags = ["--lr", "0.05", "--max_steps", "2", "--grad_accum_steps", "1"]
    _, prox = fed("prox", "--fed_alg", "FedProx", "--prox_mu", "0", *flags)
    _, avg = fed("avg", "--fed_alg", "FedAVG", *flags)
    _, pulled = fed("pulled", "--fed_alg", "FedProx", "--prox_mu", "5", *flags)
    assert_close(adapter(prox), adapter(avg))
    assert any((adapter(pulled)[n] - t).abs().max() > 1e-6 for n, t in adapter(avg).items())


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ("--fed_alg FedAVG --client_lr 1e-4 --lr 1e-4", "lr"),
        ("--method FedProx --client_lr 1e-4", "client_lr"),
        ("--fed_alg FedAVG --client_lr 1e-4 --lr 0.2", None),
        ("--method FedAvg --client_lr 1e-4 --max_steps 10000 --patience 1", None),
        ("--fed_alg FedAdam --client_lr 1e-4 --lr 1e-4", None),
        ("--train_mode local --lr 1e-5", None),
    ],
)
def test_plain_sgd_at_a_rate_of_adams_is_warned_of_where_no_round_can_show(fed, caplog, flags, option):
    """The loss that it says is one that a run of as many rounds comes to: of all examples, in one batch."""
    words = "--client_num 2 --client_num_per_step 2 --client_batch_per_step 1 --batch_size 30 --max_steps 3"
    status, folder = fed("run", *words.split(), "--grad_accum_steps", "1", "--val_steps", "1", *flags.split())
    assert status == 0
    warned = [message for message in caplog.messages if "moves next to nothing" in message]
    assert len(warned) == (option is not None)
    if option is not None:
        assert warned[0].startswith(f"{option}: 0.0001 moves next to nothing: by the first round's")
        said = float(re.search(r"3 rounds lower the loss of [\d.]+ by about (\S+)\.", warned[0])[1])
        losses = [row["train_loss"] for row in rows(folder)[1:]]
        assert said == pytest.approx(1.5 * (losses[0] - losses[-1]), rel=0.5)


def test_sums_over_batches_are_means_at_larger_rates(fed):
    """The original FedGPL's clients add up four batches: as docs/differences.md has it, with B = 4."""
    words = ("--fed_alg", "FedAVG", "--grad_accum_mean", "batches", "--lora_dropout", "0")
    _, sums = fed("sums", *words, "--accumulate", "sum", "--client_lr", "0.01", "--lr", "0.02")
    _, means = fed("means", *words, "--client_lr", "0.04", "--lr", "0.08")
    for one, other in zip(rows(sums)[1:], rows(means)[1:], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    assert rows(sums)[-1]["val_loss"] < rows(sums)[0]["val_loss"]


def test_local_mode_learns_without_sending_a_byte(fed):
    status, folder = fed("local", "--train_mode", "local", "--lr", "0.01", "--client_num", "10000")
    assert status == 0
    assert rows(folder)[-1]["val_loss"] < rows(folder)[0]["val_loss"]
    assert rows(folder)[-1]["bytes_up"] == 0 and rows(folder)[-1]["clients"] == []


def test_the_size_of_a_wave_changes_nothing(fed):
    _, large = fed("large", "--wave_tokens", "100000", "--max_steps", "2")
    _, small = fed("small", "--wave_tokens", "1", "--max_steps", "2")
    assert_close(adapter(small), adapter(large), tolerance=2e-5)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(one_run, fed):
    _, again = fed("again")
    _, other = fed("other", "--seed", "5")
    assert_close(adapter(one_run), adapter(again))
    assert any(not torch.equal(t, adapter(other)[name]) for name, t in adapter(one_run).items())


def stop_before_a_validation(process, folder):
    """Hold a run that validates every third round in the one before, from the fifth on."""
    wait_for_rows(folder, 5, process.is_alive)
    looked_at = psutil.Process(process.pid)
    while True:
        looked_at.suspend()
        while looked_at.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if (rows_written(folder) - 1) % 3 == 2:
            return
        looked_at.resume()
        assert process.is_alive()


def test_a_run_ended_by_sigterm_and_then_killed_is_in_the_end_one_never_stopped(
    fed, model, data, tmp_path, capsys
):
    """A scheduler's end leaves a checkpoint and a message; SIGKILL what there was."""
    flags = ["--max_steps", "30", "--val_steps", "3", "--patience", "0"]
    _, never = fed("never", *flags)
    folder, log = tmp_path / "stopped", tmp_path / "log"
    again = ["fed", "--out_dir", str(tmp_path), "--exp_name", "stopped", "--resume"]
    process = start(arguments(model, data, tmp_path, "stopped", *flags), log)
    try:
        stop_before_a_validation(process, folder)
        assert main(again) == 2
        assert f"process {process.pid} on " in capsys.readouterr().err, "one process at a time"
        process.terminate()
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    finally:
        process.kill()
    said = log.read_text()
    assert process.exitcode == 143 and "fedloom: terminated" in said and "--resume" in said
    assert "Traceback" not in said
    # With a validation there is a checkpoint anyway. A row stands there a moment before its round counts.
    saved = round_of(latest_checkpoint(folder))
    assert saved in (rows_written(folder) - 1, rows_written(folder) - 2) and saved % 3 != 0

    process = start(again, tmp_path / "log of the next")
    wait_for_rows(folder, rows_written(folder) + 4, process.is_alive)
    process.kill()
    process.join()
    assert rows_written(folder) < 31
    assert main(again) == 0
    assert_close(adapter(folder, 30), adapter(never, 30))
    assert [row["round"] for row in rows(folder)] == list(range(31))
    same = ("train_loss", "clients", "val_accuracy")
    for row, expected in zip(rows(folder), rows(never), strict=True):
        assert {k: row[k] for k in same if k in row} == {k: expected[k] for k in same if k in expected}


def test_ctrl_c_leaves_a_checkpoint_and_a_clean_message(model, data, tmp_path):
    flags = ["--max_steps", "500", "--val_steps", "500"]
    process = start(arguments(model, data, tmp_path, "run", *flags), tmp_path / "log")
    wait_for_rows(tmp_path / "run", 3, process.is_alive)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 130
    assert "--resume" in said and "fedloom: interrupted" in said and "Traceback" not in said
    assert list((tmp_path / "run").glob("checkpoints/round-*/state/state.json"))


def test_training_stops_when_accuracy_has_not_risen(fed):
    flags = [
        "--client_lr",
        "1e-12",
        "--fed_alg",
        "FedAVG",
        "--lr",
        "1e-12",
        "--max_steps",
        "20",
        "--val_steps",
        "1",
    ]
    _, folder = fed("stops", *flags, "--patience", "3")
    assert rows(folder)[-1]["round"] == 3
    _, folder = fed("goes-on", *flags, "--patience", "0", "--max_steps", "4")
    assert rows(folder)[-1]["round"] == 4


@pytest.mark.parametrize(
    "algorithm, number", [("FedAdam", math.nan), ("FedAVG", 3e38), ("FedAdam", 3e38), ("FedAdam", 1e19)]
)
def test_a_client_that_diverges_is_left_out_and_named(fed, monkeypatch, caplog, algorithm, number):
    """A finite number too: of one so large the sum, the step or its square is infinite."""
    import fedloom.runtimes.in_process as runtime

    train = runtime.train_locally

    def spoiled(model, bank, *rest, **named):
        result = train(model, bank, *rest, **named)
        next(iter(result.bank.tensors.values()))[0] = number
        return result

    monkeypatch.setattr(runtime, "train_locally", spoiled)
    # One wave: its first client is spoiled.
    flags = f"--wave_tokens 100000 --fed_alg {algorithm} --lr 0.01 --max_steps 2"
    status, folder = fed("spoiled", *flags.split())
    assert status == 0
    for row in rows(folder)[1:]:
        assert row["clients_left_out"] == row["clients"][:1]
        assert math.isfinite(row["train_loss"])
    assert f"client {rows(folder)[1]['clients'][0] + 1} left out" in caplog.text
    assert all(t.abs().max() < 10 for t in adapter(folder).values())
    again = ["fed", "--out_dir", str(folder.parent), "--exp_name", "spoiled", "--resume", "--max_steps", "3"]
    assert main(again) == 0


def test_a_run_in_which_all_diverge_stops_and_keeps_the_last_good_checkpoint(fed, capsys):
    # Each step takes a client a million times as far from the start as it was.
    words = "--fed_alg FedProx --prox_mu 1000 --client_lr 1000 --lr 1 --val_steps 1 --client_epoch 9"
    status, _ = fed("diverges", *words.split())
    assert status == 2
    said = capsys.readouterr().err
    assert "not finite" in said and "client_lr" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--client_num", "61"], ["client_num", "61", "60"]),
        (["--client_num_per_step", "7"], ["client_num_per_step", "7", "6"]),
        (["--max_length", "8"], ["max_length", "8"]),
        (["--device", "cuda:7"], ["cuda:7", "cpu"]),
        (["--target_modules", "q_projj"], ["q_projj", "q_proj"]),
        (["--data_dir", "nowhere"], ["nowhere"]),
        (["--model_name", "./nowhere"], ["./nowhere"]),
        (["--train_mode", "fedGradFocus", "--client_num", "59"], ["client_num", "59", "keeps 2 of 60", "58"]),
    ],
)
def test_a_mistake_is_told_in_one_message(fed, capsys, flags, words):
    status, folder = fed("mistake", *flags)
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("fedloom: error:") and "Traceback" not in said
    assert all(word in said for word in words)
    assert not (folder / "config.yaml").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(one_run, fed, capsys):
    before = (one_run / "metrics.jsonl").read_bytes()
    assert fed("run", out_dir=one_run.parent)[0] == 2
    assert "--resume" in capsys.readouterr().err
    assert (one_run / "metrics.jsonl").read_bytes() == before and before.count(b"\n") == 5


def test_a_run_that_diverges_later_names_the_checkpoint_that_it_kept(fed, monkeypatch, capsys):
    import fedloom.federation.aggregate as aggregation

    calls = []

    def usable_for_two_rounds(row, scale=1.0):
        calls.append(scale)
        # Asked for each of three clients: the change, and what its rule sends.
        return len(calls) <= 12 and usable(row, scale)

    monkeypatch.setattr(aggregation, "usable", usable_for_two_rounds)
    status, folder = fed("late", "--val_steps", "100")
    assert status == 2
    kept = folder / "checkpoints" / "round-000002"
    assert str(kept) in capsys.readouterr().err
    assert (kept / "state").is_dir() and adapter(folder, 2)


def test_val_limit_counts_the_first_validation_examples(model, data, fed, tmp_path):
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for part in ("train", "validation", "test"):
        lines = (data / f"{part}.jsonl").read_text().splitlines(keepends=True)
        (fewer / f"{part}.jsonl").write_text("".join(lines[:3] if part == "validation" else lines))
    few = arguments(model, fewer, tmp_path, "few", "--max_steps", "1")
    assert main(few) == 0
    status, limited = fed("limited", "--max_steps", "1", "--val_limit", "3")
    assert status == 0
    _, whole = fed("whole", "--max_steps", "1")
    losses = [rows(folder)[-1]["val_loss"] for folder in (tmp_path / "few", limited, whole)]
    assert losses[0] == losses[1] != losses[2]
