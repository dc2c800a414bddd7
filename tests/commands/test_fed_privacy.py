"""`fedloom fed --privacy user` from the command line to the folder it leaves."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
import yaml
from run_files import adapter, assert_close, checkpoint, rows, write_rows
from tiny import save_tiny_llama

if find_spec("dp_accounting") is None:
    pytest.skip("dp-accounting is not installed", allow_module_level=True)

from fedloom.commands.cli import main
from fedloom.federation.privacy.account import Account
from fedloom.report.groups import group_runs
from fedloom.report.results import results
from fedloom.runs.record import read_run

RUN = """
    --data_name ChilleD/MultiArith --train_mode fed --server_optimizer none --client_num 4
    --client_num_per_step 2 --client_batch_per_step 2 --client_lr 0.05 --lora_r 4 --max_steps 4 --val_steps 2
    --patience 0 --dtype float32 --wave_tokens 2000 --report_to none
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    for part, count in (("train", 16), ("validation", 4), ("test", 4)):
        pears = [{"question": f"{i} pears and {i % 7} {part[0]}?", "final_ans": 2 * i} for i in range(count)]
        write_rows(folder / f"{part}.jsonl", pears)
    return ["--model_name", str(folder / "llama"), "--data_dir", str(folder)]


@pytest.fixture
def fed(inputs, tmp_path):
    """Runs `fedloom fed`; returns the exit status and the run's folder."""

    def run(name, *flags):
        words = ["fed", *inputs, *RUN.split(), "--out_dir", str(tmp_path), "--exp_name", name]
        return main([*words, *(word for flag in flags for word in flag.split())]), tmp_path / name

    return run


# Rényi accounting takes no time.
USER = "--privacy user --accountant rdp"
PRIVATE = f"{USER} --target_epsilon 8 --privacy_seed 5"


def test_a_run_tells_what_it_costs_and_nothing_of_who_was_there(fed):
    status, run = fed("run", PRIVATE)
    assert status == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    account = Account(0.5, saved["noise_multiplier"], saved["delta"], "rdp")
    assert saved["delta"] == 1e-5
    assert [row["epsilon"] for row in rows(run)] == [account.epsilon(n) for n in range(5)]
    assert 7.9 < rows(run)[-1]["epsilon"] <= 8
    told = {name for row in rows(run) for name in row}
    assert told == {
        *("round", "epsilon", "clip", "bytes_up", "bytes_down", "val_loss", "val_accuracy"),
        *("seconds", "eval_seconds", "wall_seconds"),
    }
    # Not who came: as much as two clients, half of all, send on average; a byte says whether it was within.
    size = sum(t.numel() * 4 for t in adapter(run).values())
    assert {row["bytes_up"] for row in rows(run)[1:]} == {2 * (size + 1)}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final"]["epsilon"] == {"value": rows(run)[-1]["epsilon"], "round": 4}
    (cell,) = results(group_runs([read_run(run)]))["Epsilon"]
    assert cell.text == f"{rows(run)[-1]['epsilon']:.4g}"


def test_a_resumed_run_continues_its_account_and_its_noise(fed):
    fed("whole", PRIVATE)
    # The noise is that of the four rounds for which it was found.
    noise = yaml.safe_load((fed("whole", "--resume")[1] / "config.yaml").read_text())["noise_multiplier"]
    status, parts = fed("parts", PRIVATE, f"--noise_multiplier {noise} --max_steps 2")
    assert status == 0
    assert fed("parts", "--resume --max_steps 4")[0] == 0
    whole = parts.parent / "whole"
    for name in ("epsilon", "clip", "val_loss"):
        assert [row.get(name) for row in rows(parts)] == [row.get(name) for row in rows(whole)]
    assert_close(adapter(parts), adapter(whole))


def test_no_round_exceeds_the_budget(fed, capfd):
    assert fed("run", PRIVATE, "--max_steps 2")[0] == 0
    status, run = fed("run", "--resume --max_steps 9")
    assert status == 0 and rows(run)[-1]["round"] == 2
    assert "another round would cost epsilon" in capfd.readouterr().err


def test_rounds_that_were_lost_and_are_played_with_other_noise_are_counted(fed):
    secret = f"{USER} --noise_multiplier 1"
    _, run = fed("run", secret, "--max_steps 3")
    before = [row["epsilon"] for row in rows(run)]
    shutil.rmtree(checkpoint(run, 3))  # as if the run had been killed after round 3
    for start, lost in ((1, 1), (2, 2)):
        assert fed("run", "--resume --max_steps 3")[0] == 0, start
        assert rows(run)[2]["epsilon"] == before[2]
        assert rows(run)[3]["epsilon"] == Account(0.5, 1.0, 1e-5, "rdp").epsilon(3 + lost)
        shutil.rmtree(checkpoint(run, 3))


def test_the_noise_is_secret_unless_a_seed_is_asked_for(fed):
    first, second = (fed(name, f"{USER} --noise_multiplier 1 --max_steps 1")[1] for name in "ab")
    assert not torch.equal(*(next(iter(adapter(run).values())) for run in (first, second)))
    assert "key" not in yaml.safe_load((first / "config.yaml").read_text())


@pytest.mark.parametrize(
    "method",
    [
        "--server_optimizer none",
        "--method FFA-LoRA --server_optimizer adam",
        "--train_mode fedGradFocus --max_layer_num 1 --server_data_fraction 0.25 --batch_size 1",
    ],
)
def test_without_noise_and_clip_it_is_the_run_without_privacy_bit_for_bit(fed, method):
    all_of_them = f"--client_num_per_step 4 --max_steps 2 --lr 0.01 {method}"
    _, plain = fed("plain", all_of_them)
    status, private = fed("private", all_of_them, f"{USER} --noise_multiplier 0 --clip none")
    assert status == 0
    assert_close(adapter(private), adapter(plain))
    assert rows(private)[-1]["val_loss"] == rows(plain)[-1]["val_loss"]
    assert rows(private)[-1]["epsilon"] is None  # JSON has no word for infinity
    assert rows(private)[-1]["bytes_up"] == rows(plain)[-1]["bytes_up"]


@pytest.mark.parametrize("more", ["--compress int8", "--method FedSVD", "--client_rule proximal:0.1"])
def test_what_clients_do_before_they_send_is_their_own(fed, more):
    status, run = fed("run", f"{USER} --noise_multiplier 0.5 --clip 0.01 --privacy_seed 1", more)
    assert status == 0 and rows(run)[-1]["clip"] == 0.01


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--privacy user", "privacy: user needs noise; give --target_epsilon, such as 8, or --noise_mult"),
        ("--target_epsilon 8", "target_epsilon: 8.0 has no meaning without differential privacy"),
        (f"{PRIVATE} --delta 0.25", "all data of one to be told; give --delta 1e-05, or less"),
        (f"{PRIVATE} --clip adaptive:0", "clip: adaptive:0 is not a number above 0, none, or adaptive"),
        (f"{PRIVATE} --clip often", "clip: often is not a number above 0, none, or adaptive"),
        (f"{PRIVATE} --clip none", "clip: none bounds nothing, and no noise hides what has no bound"),
        (f"{PRIVATE} --noise_multiplier 0", "noise_multiplier: 0 is no noise, whose epsilon is infinite"),
        (f"{PRIVATE} --aggregator median", "aggregator: median is no sum"),
        (f"{PRIVATE} --aggregator krum", "aggregator: krum is no sum"),
        (f"{PRIVATE} --method FedEx-LoRA", "lora_aggregation: fedex combines products"),
        (f"{PRIVATE} --share a", "share: a leaves clients parameters of their own"),
        (f"{PRIVATE} --client_rule scaffold", "client_rule: scaffold lets the server keep what clients send"),
        (f"{PRIVATE} --client_rule feddyn", "client_rule: feddyn lets the server keep what clients send"),
        (f"{PRIVATE} --lora_r 2,4", "lora_r: 2,4 gives clients ranks of their own"),
        (f"{PRIVATE} --train_mode local", "privacy: user protects what clients send, and train_mode local"),
        (f"{USER} --target_epsilon 1e5", "target_epsilon: 100000 is so large that 4 rounds need"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_the_reason(fed, capfd, flags, said):
    status, _ = fed("refused", flags)
    assert status == 2 and said in capfd.readouterr().err


EXAMPLE = "--privacy example --clip 1 --accountant rdp --privacy_seed 5"


@pytest.mark.parametrize(
    "method", ["", "--method FFA-LoRA --aggregator median", "--peft prompt-tuning --client_rule scaffold"]
)
def test_each_example_is_hidden_by_noise_at_its_client(fed, method):
    status, run = fed("run", EXAMPLE, "--noise_multiplier 1 --batch_size 1 --grad_accum_steps 1", method)
    assert status == 0
    assert not {"train_loss", "train_accuracy", "tokens"} & {name for row in rows(run) for name in row}
    # Four examples each, of which a step takes one on average; two steps a round.
    done = [0] * 4
    for row in rows(run)[1:]:
        for client in row["clients"]:
            done[client] += 2
        assert row["epsilon"] == Account(0.25, 1.0, 1e-5, "rdp").epsilon(max(done)) and row["delta"] == 1e-5


def test_without_noise_and_clip_a_step_on_all_examples_is_their_mean(fed):
    whole = "--batch_size 1 --client_batch_per_step 4 --grad_accum_steps 4 --grad_accum_mean batches"
    flags = [whole, "--lora_dropout 0 --max_steps 2"]
    _, plain = fed("plain", *flags)
    status, private = fed("private", *flags, EXAMPLE.replace("1 ", "none ", 1), "--noise_multiplier 0")
    assert status == 0
    assert_close(adapter(private), adapter(plain), 1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (f"{EXAMPLE} --target_epsilon 8", "privacy: example needs --noise_multiplier, such as 1"),
        ("--privacy example --noise_multiplier 1", "clip: adaptive follows the norms of clients' changes"),
        (f"{EXAMPLE} --noise_multiplier 1 --delta 0.3", "delta: 0.3 is not below 1 / 4 examples"),
        (f"{EXAMPLE} --noise_multiplier 1 --accumulate sum", "accumulate: sum multiplies a step by how many"),
        (f"{EXAMPLE} --noise_multiplier 1 --method Fed-SB", "train_factors: square trains matrices between"),
        (f"{EXAMPLE} --noise_multiplier 1 --method Ravan", "train_factors: heads trains matrices between"),
        (f"{EXAMPLE} --noise_multiplier 1 --method Ditto", "client_rule: ditto trains a second model on"),
        (f"{EXAMPLE} --noise_multiplier 1 --lora_r 2,4", "lora_r: 2,4 gives clients ranks of their own"),
    ],
)
def test_what_cannot_hide_examples_is_refused_with_the_reason(fed, capfd, flags, said):
    status, _ = fed("refused", flags)
    assert status == 2 and said in capfd.readouterr().err


def test_peers_hide_their_examples_from_all_neighbours_together(inputs, tmp_path, capfd):
    words = (
        f"dfl {' '.join(inputs)} --data_name ChilleD/MultiArith --name ring --num_clients 4 --num_rounds 2"
    )
    words += (
        f" --local_steps 2 --batch_size 2 --lora_r 4 --dtype float32 --report_to none --out_dir {tmp_path}"
    )
    words += " --wave_tokens 2000 --privacy example --clip 1 --accountant rdp"
    assert main([*words.split(), "--noise_multiplier", "1", "--exp_name", "peers"]) == 0
    told = rows(tmp_path / "peers")
    found = [Account(0.5, 1.0, 1e-5, "rdp").epsilon(2 * n) for n in range(3)]
    assert [row["epsilon"] for row in told] == found
    assert [row["peer_epsilon"] for row in told] == [[epsilon] * 4 for epsilon in found]
    assert not {"train_loss", "peer_train_loss", "tokens"} & told[-1].keys()
    refused = [
        ("--noise_multiplier 1 --layer_votes either", "layer_votes: either tells neighbours of gradients"),
        ("--noise_multiplier 1 --privacy user", "privacy: user needs a server that adds noise to the sum"),
    ]
    for flags, said in refused:
        assert main([*words.split(), "--exp_name", "refused", *flags.split()]) == 2
        assert said in capfd.readouterr().err
