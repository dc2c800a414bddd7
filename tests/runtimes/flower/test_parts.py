"""The pieces behind `fedloom flower`, in one process: its folder, clients' answers, the server's checks."""

import dataclasses
import io
import json
import logging
import math
import os
import re
import shutil
import subprocess
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import HELPERS, ROOT
from run_files import adapter, assert_close, checkpoint, rows, write_rows

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)

import torch
import yaml
from flower_hand import KEYS, Hand, nodes, serve, written
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.supercore.logger import FLOWER_LOGGER
from safetensors.torch import load_file, save
from tiny import save_tiny_llama
from transformers import AutoTokenizer

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.privacy.account import Account
from fedloom.runtimes.flower.answers import read_update
from fedloom.runtimes.flower.apps import make_server_app
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.memory import Memory
from fedloom.runtimes.flower.messages import from_records, to_records
from fedloom.runtimes.flower.resident import _address, ask_resident
from fedloom.runtimes.flower.rows import Unfit, chosen_by, mask_of, pack, unpack
from fedloom.training.flower.client_sizes import ClientSizes
from fedloom.training.flower.place import client_number, own_data
from fedloom.training.flower.run_config import from_run_config
from fedloom.training.private import ExampleBudget

RUN = """
    --client_num 3 --client_num_per_step 2 --client_batch_per_step 2 --client_lr 0.05 --lr 0.05 --lora_r 4
    --max_steps 3 --val_steps 1 --patience 0 --dtype float32 --wave_tokens 2000 --report_to none
    --train_mode fed --fed_alg FedProx
"""
OPTIONS = [*RUN.split(), "--round_timeout", "1", "--join_timeout", "0.8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    for part, count in (("train", 30), ("validation", 6), ("test", 4)):
        pears = [{"question": f"{i} pears and {i % 7} {part[0]}?", "final_ans": 2 * i} for i in range(count)]
        write_rows(folder / f"{part}.jsonl", pears)
    return [
        "--model_name",
        str(folder / "llama"),
        "--data_name",
        "ChilleD/MultiArith",
        "--data_dir",
        str(folder),
    ]


EXAMPLE = "--privacy example --clip 1 --aggregator norm_bound"


@pytest.fixture(scope="module")
def preferences(model):
    data = Path(model[1]).parent / "preferences.jsonl"
    pairs = [
        {"prompt": f"{i} pears?", "chosen": f"It is {i}.", "rejected": f"No {i % 7}."} for i in range(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return [*model[:2], "--data_name", str(data)]


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("", "model"),  # what one client can do is bounded
        ("--aggregator mean", "model"),
        (
            "--method FLoRA --server_optimizer none --residual_rank 3 --client_optimizer adam "
            "--client_lr 0.002",
            "model",
        ),
        ("--aggregator mean --train_factors square --lora_aggregation fedsb", "model"),
        ("--aggregator mean --client_rule ditto --client_optimizer adamw --client_lr 0.002", "model"),
        # The reference of DPO is the base as it was loaded, not the one that a server has changed.
        ("--method FedEx-LoRA --server_optimizer none", "preferences"),
        ("--privacy user --noise_multiplier 0.5 --privacy_seed 2 --compress int8 --accountant rdp", "model"),
        (f"{EXAMPLE} --noise_multiplier 0.5 --privacy_seed 2 --compress int8 --accountant rdp", "model"),
    ],
)
def test_an_algorithm_is_that_of_one_process_also_after_resume(
    request, tmp_path, capsys, monkeypatch, method, data
):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    model, options = request.getfixturevalue(data), [*OPTIONS, *method.split()]
    run_config = written(tmp_path / "app", *model, *options, "--out_dir", str(tmp_path / "flower"))
    alone = [
        *RUN.split(),
        *(method or "--aggregator norm_bound").split(),
        "--out_dir",
        str(tmp_path / "alone"),
    ]
    assert main(["fed", *model, *alone]) == 0
    serve(Hand(run_config, nodes()), {**run_config, "max_steps": 2})
    said = capsys.readouterr().out
    assert said.count("aggregator: norm_bound, so that no one's") == (not method)
    assert said.count("aggregator: mean, with no bound on what one may do") == (
        "method F" in method or "privacy user" in method
    )
    serve(Hand(run_config, nodes()), {**run_config, "resume": True})
    ours, theirs = tmp_path / "flower" / "test", tmp_path / "alone" / "test"
    assert_close(adapter(ours), adapter(theirs), 1e-6)
    assert (tmp_path / "flwr" / "fedloom" / "test").exists() == ("ditto" in method or "int8" in method)
    for own in checkpoint(theirs).glob("client-*/adapter_model.safetensors"):
        kept = tmp_path / "flwr" / "fedloom" / "test" / own.parent.name / "adapter" / own.name
        assert_close(load_file(kept), load_file(own), 1e-6)
    for name in ("clients", "epsilon", "clip"):
        assert [row.get(name) for row in rows(ours)] == [row.get(name) for row in rows(theirs)]
    assert (ours / "clients.json").read_text() == (theirs / "clients.json").read_text()


def test_a_round_that_is_asked_for_twice_has_other_noise(model, tmp_path):
    """The difference of two answers with one noise would have none."""
    words = [*EXAMPLE.split(), "--noise_multiplier", "1"]
    sent = {}
    for name, seed in (("first", "none"), ("again", "none"), ("seeded", "3"), ("seeded again", "3")):
        run = name.replace(" ", "-")
        options = [*model, *OPTIONS, *words, "--privacy_seed", seed, "--max_steps", "1", "--exp_name", "run"]
        options += ["--out_dir", str(tmp_path / run)]
        if seed == "none":  # the clients' processes stay, and with them what they drew when they began
            options = [*options[:-1], str(tmp_path / "runs")]
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        run_config = written(tmp_path / f"{run}-app", *options)
        serve(Hand(run_config, nodes()), run_config)
        sent[name] = adapter(Path(options[-1]) / "run")
    assert any(not torch.equal(sent["first"][n], t) for n, t in sent["again"].items())
    assert all(torch.equal(sent["seeded"][n], t) for n, t in sent["seeded again"].items())


def test_with_data_of_their_own_clients_spend_by_their_own_sizes(model, tmp_path, caplog):
    """Who has spent the target is left out, others go on; what was told is known after a resume, too."""
    sizes = (4, 16, 20)
    after = [Account(2 / sizes[0], 1.0, 1e-5, "rdp").epsilon(2 * rounds) for rounds in range(3)]
    words = f"{EXAMPLE} --noise_multiplier 1 --accountant rdp --target_epsilon {(after[1] + after[2]) / 2}"
    words += " --client_num_per_step 3 --batch_size 2 --grad_accum_steps 1 --min_clients 2 --client_data node"
    run_config = written(tmp_path / "app", *model, *OPTIONS, *words.split(), "--out_dir", str(tmp_path))

    def having(*sizes):
        for number, size in enumerate(sizes, start=1):
            pears = [{"question": f"{i} and {number}?", "final_ans": i + number} for i in range(size)]
            write_rows(tmp_path / f"{size}.jsonl", pears)
        return [
            {"client": number, "data-path": str(tmp_path / f"{size}.jsonl")}
            for number, size in enumerate(sizes, start=1)
        ]

    serve(Hand(run_config, having(*sizes)), run_config | {"max_steps": 2})
    assert [row["clients"] for row in rows(tmp_path / "test")[1:]] == [[0, 1, 2], [1, 2]]
    assert [row["epsilon"] for row in rows(tmp_path / "test")[1:]] == pytest.approx([after[1]] * 2)

    again = run_config | {"resume": True, "min_clients": 1}
    serve(Hand(run_config, having(4, 15, 20)), again)
    assert "client 2 has 15 examples and had 16 before" in caplog.text
    assert rows(tmp_path / "test")[-1]["clients"] == [2]
    assert rows(tmp_path / "test")[-1]["epsilon"] == pytest.approx(after[1])
    with pytest.raises(UserError, match=r"target_epsilon: .* is spent by all clients that are there"):
        serve(Hand(run_config, having(4)), again | {"max_steps": 4})


def test_a_delta_that_would_tell_an_example_is_refused_by_the_size(tmp_path):
    budget = ExampleBudget([0, 0], [], 1.0, 0.01, "rdp", None, False, None)
    sizes = ClientSizes.of_the_run(tmp_path, budget)
    small = r"delta: 0.01 is not below 1 / 100 examples of client 2, .*; give --delta 1e-05, or less"
    # That is what auto comes to while no size is known, so that to leave delta out mends nothing.
    large = r"delta: .* 1 / 150,000 examples of client 2, .*; give --delta 2e-06, or less"
    for size, why in ((100, small), (150_000, large), (None, "gave None")):
        with pytest.raises(UserError, match=why):
            sizes.enter(1, Content({"examples": size}))
    sizes.enter(1, Content({"examples": 99}))
    assert ClientSizes.of_the_run(tmp_path, budget).budget.sizes == [0, 99]
    (tmp_path / "client_examples.json").write_text('{"9": 3}')
    with pytest.raises(UserError, match=r"client_examples.json is not as .*client '9' has '3' examples"):
        ClientSizes.of_the_run(tmp_path, budget)


def test_a_client_that_lost_what_it_held_gets_everything(model, tmp_path):
    words = [*model, *OPTIONS, "--train_mode", "fedGradFocus", "--max_layer_num", "1", "--min_layer_num", "0"]
    words += ["--server_data_fraction", "0.2", "--server_grad_scale", "0", "--client_num_per_step", "3"]

    def restarted(node, reply):
        if node == 12 and from_records(reply.content).facts.get("round") == 0:
            grid.contexts[12].state = RecordDict()
        return reply

    sent = {}
    for name, spoil in (("calm", lambda node, reply: reply), ("lossy", restarted)):
        run_config = written(tmp_path / f"{name}-app", *words, "--exp_name", name, "--out_dir", str(tmp_path))
        grid = Hand(run_config, nodes(), spoil)
        serve(grid, run_config)
        after = rows(tmp_path / name)[1:]
        assert [row["clients_left_out"] for row in after] == [[], [], []]
        sent[name] = [row["bytes_down"] for row in after]
    everything = sum(t.numel() * 4 for t in adapter(tmp_path / "calm").values()) + 1
    first, second, third = sent["calm"]
    assert (first, second < 3 * everything, third < 3 * everything) == (3 * everything, True, True)
    assert sent["lossy"] == [first, second + everything, third]
    assert_close(adapter(tmp_path / "lossy"), adapter(tmp_path / "calm"), 1e-6)


def test_bad_answers_are_refused_and_the_round_goes_on(model, tmp_path):
    run_config = written(
        tmp_path / "app", *model, *OPTIONS, "--client_num_per_step", "3", "--out_dir", str(tmp_path)
    )
    silent = []  # of node 13, since it was asked for the second round

    def spoil(node, reply):
        content_ = from_records(reply.content)
        round_ = content_.facts.get("round")
        if round_ == 0 and node == 11:
            reply.content = to_records(dataclasses.replace(content_, tensors=content_.tensors[:-4]))
        if round_ == 1 and node == 12:
            row = {name: t * math.nan for name, t in load(content_).items()}
            reply.content = to_records(dataclasses.replace(content_, tensors=save(row)))
        if node == 13 and (round_ == 1 or silent):
            silent.append(round_)
            return None
        return reply

    serve(Hand(run_config, nodes(), spoil), run_config | {"min_clients": 2})
    after = rows(tmp_path / "test")[1:]
    assert [row["clients_left_out"] for row in after] == [[0], [1, 2], []]
    assert [row["clients_refused"] for row in after] == [[0], [], []]
    assert [row["clients_lost"] for row in after] == [[], [2], []]
    assert after[-1]["clients"] == [0, 1] and set(silent) == {1, None}, "it is asked who it is, and no more"
    assert all(t.isfinite().all() for t in adapter(tmp_path / "test").values())


def test_no_answer_of_one_client_ends_the_federation(model, tmp_path, caplog):
    run_config = written(
        tmp_path / "app", *model, *OPTIONS, "--client_num_per_step", "3", "--out_dir", str(tmp_path)
    )
    raw = {
        0: json.dumps(GOOD | {"client": 0, "round": 0, "loss": 10**400}),
        1: '{"deep": ' + "[" * 100_000,
        2: json.dumps({"mistake": "\x1b[31m" + "a" * 10_000}),
    }

    def spoil(node, reply):
        content_ = from_records(reply.content)
        round_ = content_.facts.get("round")
        if round_ is None:
            return reply
        if node == 11:
            reply.content = RecordDict({**reply.content, "fedloom": ConfigRecord({"json": raw[round_]})})
        elif node == 12 and round_ == 1:
            reply.content["fedloom"] = ConfigRecord(
                {"json": json.dumps(content_.facts | {"examples": 10**6})}
            )
        elif node == 12 and round_ == 2:
            reply.__dict__["_content"] = KeyError("of Flower's reader")
        return reply

    serve(Hand(run_config, nodes(), spoil), {**run_config, "max_steps": 2})
    serve(Hand(run_config, nodes(), spoil), {**run_config, "resume": True})
    after = rows(tmp_path / "test")[1:]
    assert [row["clients_refused"] for row in after] == [[0], [1], []]
    assert [row["clients_lost"] for row in after] == [[], [0], [0, 1]]
    assert [row["clients_left_out"] for row in after] == [[0], [0, 1], [0, 1]]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(len(line) < 500 and line.isprintable() for line in said), said
    assert "round 1: client 1's answer is refused: loss is 1000" in said[0]
    assert len([line for line in said if "client 1" in line and line.startswith("round")]) == 3
    alone = adapter(tmp_path / "test")
    assert all(t.isfinite().all() for t in alone.values())


def test_a_number_belongs_to_its_key_and_the_start_waits_for_the_right_one(model, tmp_path, caplog):
    words = [*model, *OPTIONS, "--out_dir", str(tmp_path), "--client_keys", str(tmp_path / "key{i}.pub")]
    run_config = written(tmp_path / "app", *words, "--max_steps", "1")
    for number, key in enumerate(KEYS[:3], start=1):
        (tmp_path / f"key{number}.pub").write_bytes(key)
    # Node 11 has the key of client 3 and says that it is client 1, before that one does.
    claims = [{"client": 1}, {"client": 2}, {"client": 1}]
    grid = Hand(run_config, claims, keys=[KEYS[2], KEYS[1], KEYS[0]])
    serve(grid, run_config | {"min_clients": 2, "join_timeout": 2.0})
    assert "client 1 is claimed by the key SHA256:" in caplog.text and "is client 3's" in caplog.text
    assert "waiting for clients: 2 of 3 are there" in caplog.text
    assert rows(tmp_path / "test")[-1]["clients"] == [0, 1]


def test_a_number_stays_with_the_key_that_gave_it_first_also_after_a_resume(model, tmp_path, caplog):
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path))
    serve(Hand(run_config, nodes()), {**run_config, "max_steps": 1})
    marks = json.loads((tmp_path / "test" / "client_keys.json").read_text())
    assert marks.keys() == {"1", "2", "3"} and all(mark.startswith("SHA256:") for mark in marks.values())
    again = {**run_config, "resume": True, "max_steps": 2}
    with pytest.raises(UserError, match=r"client 3 is claimed by the key .*, which is no client's"):
        serve(Hand(run_config, nodes(), keys=[*KEYS[:2], KEYS[4]]), again | {"min_clients": 3})
    serve(Hand(run_config, nodes(), keys=[*KEYS[:2], KEYS[4]]), again | {"client_keys": "any"})
    assert [row["round"] for row in rows(tmp_path / "test")] == [0, 1, 2]


def load(content_):
    import safetensors.torch

    return safetensors.torch.load(content_.tensors)


def test_a_client_with_preferences_where_others_have_answers_is_told(model, tmp_path):
    pair = {"prompt": "Pears?", "chosen": "Two.", "rejected": "No."}
    pairs, sums = tmp_path / "pairs.jsonl", tmp_path / "sums.jsonl"
    pairs.write_text(f"{json.dumps(pair)}\n" * 8)
    sums.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"{i}"}) + "\n" for i in range(9)))
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path))
    run_config |= {"client_data": "node", "min_clients": 1, "data_name": "qa", "data_dir": str(sums)}
    with pytest.raises(UserError, match=r"client 1 learns in another form than the server: .* preferences"):
        serve(Hand(run_config, [{"client": 1, "data-path": str(pairs)}]), run_config)


@pytest.mark.parametrize(
    ("configs", "options", "mistake"),
    [
        ([{"client": 4}] * 3, {}, "client in the node config is 4; client_num is 3"),
        ([{}] * 3, {"min_clients": 3}, "--node-config 'client=1'"),
        (
            [{"client": 2}, {"partition-id": 1}],
            {"client_keys": "any"},
            "client 2 is claimed by two SuperNodes",
        ),
        ([{"client": 2}, {"partition-id": 1}], {}, "client 2 is claimed by the key SHA256:"),
        ([{"client": 1}], {"client_keys": "/nowhere/{i}.pub"}, "cannot read /nowhere/1.pub"),
        (nodes(2), {}, "num-supernodes=3"),
        (
            [{"client": 1, "data-path": "/nowhere"}],
            {"client_data": "node"},
            "its data '/nowhere' do not exist",
        ),
        ([{"client": 1, "data-path": "/nowhere"}], {}, "client_data is none"),
        ([{"client": 2}], {"client_data": "node"}, "client 2 has no data"),
        ([{"client": 2}], {}, "1 clients are there after 0.8 seconds, and min_clients asks for 2"),
    ],
)
def test_a_mistake_ends_the_run_before_it_begins(model, tmp_path, configs, options, mistake):
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path)) | options
    with pytest.raises(UserError) as told:
        serve(Hand(run_config, configs), run_config)
    assert mistake in str(told.value)
    assert not (tmp_path / "test" / "config.yaml").exists()


@pytest.mark.parametrize(
    "error, told",
    [
        (UserError("lr: too large"), "fedloom: error: lr: too large"),
        (ValueError("a fault"), "ServerApp raised an exception\nTraceback"),
    ],
)
def test_a_users_mistake_is_a_line_of_flowers_log_and_a_fault_has_its_traceback(error, told, monkeypatch):
    def serve(grid, run_config):
        raise error

    monkeypatch.setattr(FLOWER_LOGGER, "filters", [])
    said = io.StringIO()
    monkeypatch.setattr(FLOWER_LOGGER, "handlers", [logging.StreamHandler(said)])
    try:
        make_server_app(serve)(None, Context(1, 1, {}, RecordDict(), {}))
    except (UserError, ValueError) as raised:
        FLOWER_LOGGER.log(
            logging.ERROR, "%s raised an exception", "ServerApp", exc_info=raised
        )  # as Flower does
    assert said.getvalue().startswith(told)
    assert said.getvalue().count("\n") == 1 or "Traceback" in told


def test_a_client_that_puts_questions_in_another_form_is_refused(model, tmp_path):
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path))
    shutil.copytree(model[1], tmp_path / "copy")
    moved = {**run_config, "model_name": str(tmp_path / "copy")}
    serve(Hand(moved, nodes()), {**run_config, "exp_name": "moved", "max_steps": 1})
    template = tmp_path / "copy" / "chat_template.jinja"
    template.write_text("Hello! " + template.read_text())
    with pytest.raises(UserError, match="client 1 learns in another form than the server"):
        serve(Hand(moved | {"seed": 1}, nodes()), run_config)  # a seed of their own: nothing is kept


def test_a_client_with_another_base_is_named_and_the_run_goes_on_without_it(
    model, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(FLOWER_LOGGER, "propagate", True)
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path), "--max_steps", "1")
    save_tiny_llama(tmp_path / "other", seed=1)
    shutil.copytree(model[1], tmp_path / "words")
    tokenizer = AutoTokenizer.from_pretrained(model[1])
    tokenizer.add_tokens(["a word of no text"])
    tokenizer.save_pretrained(tmp_path / "words")
    grid = Hand(run_config, nodes())
    for node, change in ((11, {"dtype": "bfloat16"}), (12, {"model_name": str(tmp_path / "other")})):
        grid.contexts[node].run_config = run_config | change
    serve(grid, run_config | {"min_clients": 2})
    by_client, by_server = [line for line in caplog.messages if "other base weights" in line]
    assert by_client.startswith("fedloom: client 2") and "cannot take part: client 2" in by_server
    assert re.search(r"has other base weights than the server \(\w+, not \w+\); give both", by_server)
    assert rows(tmp_path / "test")[-1]["clients"] == [0, 2], "another dtype may compute"
    assert not rows(tmp_path / "test")[-1]["clients_left_out"]
    grid.contexts[12].run_config = run_config | {"model_name": str(tmp_path / "words"), "max_steps": 2}
    serve(grid, run_config | {"min_clients": 2, "max_steps": 2, "resume": True})
    assert "client 2 has another tokenizer than the server" in caplog.text


def test_a_client_whose_base_becomes_another_is_left_out_from_then_on(model, tmp_path, caplog):
    words = [*model, *OPTIONS, "--client_num_per_step", "3", "--out_dir", str(tmp_path)]
    run_config = written(tmp_path / "app", *words)
    save_tiny_llama(tmp_path / "other", seed=1)

    def begun_anew(node, reply):
        if node == 12 and from_records(reply.content).facts.get("round") == 0:
            grid.contexts[node].run_config = run_config | {"model_name": str(tmp_path / "other")}
        return reply

    grid = Hand(run_config, nodes(), begun_anew)
    serve(grid, run_config | {"min_clients": 2})
    assert [row["clients_lost"] for row in rows(tmp_path / "test")[1:]] == [[], [1], []]
    assert [row["clients"] for row in rows(tmp_path / "test")[1:]] == [[0, 1, 2], [0, 1, 2], [0, 2]]
    assert "round 2 goes on without client 2: client 2 has other base weights than the server" in caplog.text


def test_when_nobody_answers_the_run_ends_and_can_go_on(model, tmp_path):
    run_config = written(tmp_path / "app", *model, *OPTIONS, "--out_dir", str(tmp_path))

    def silent(node, reply):
        return None if from_records(reply.content).facts.get("round") == 1 else reply

    with pytest.raises(UserError, match=r"round 2: no client answered .no answer in 1 seconds"):
        serve(Hand(run_config, nodes(), silent), run_config)

    def wrong(node, reply):
        content_ = from_records(reply.content)
        if "loss" in content_.facts:
            reply.content = to_records(Content(content_.facts | {"examples": -1}, content_.tensors))
        return reply

    with pytest.raises(UserError, match=r"round 2: no client answered .examples is -1, not a count"):
        serve(Hand(run_config, nodes(), wrong), run_config | {"resume": True})
    serve(Hand(run_config, nodes()), run_config | {"resume": True})
    assert [row["round"] for row in rows(tmp_path / "test")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ({"max_stepps": 3}, "unknown option max_stepps; did you mean max_steps?"),
        ({"lr": "fast"}, "lr: fast is not a number"),
        ({"train_mode": "local"}, "train_mode: local has no clients"),
        (
            {"min_clients": 4, "client_num": 3, "client_num_per_step": 2},
            "min_clients: 4 is more than client_num 3",
        ),
        ({"client_data": "data/same"}, "write {i}"),
    ],
)
def test_a_run_config_is_judged(tmp_path, value, mistake):
    run_config = written(tmp_path / "app", "--model_name", "m")
    with pytest.raises(UserError) as told:
        from_run_config(run_config | value)
    assert mistake in str(told.value)


def test_the_app_has_every_option_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "federation.yaml").write_text(
        "model_name: m\nmax_steps: 7\nexp_name: First Run\nclient_data: data/client_{i}\n"
    )
    words = [
        "flower",
        str(tmp_path / "federation.yaml"),
        "--lr",
        "0.25",
        "--output_path",
        str(tmp_path / "app"),
    ]
    assert main(words) == 0
    text = (tmp_path / "app" / "pyproject.toml").read_text()
    assert "hf_secret" not in text
    project = tomllib.loads(text)
    app = project["tool"]["flwr"]["app"]
    assert project["project"]["name"] == "fedloom-first-run"
    assert (app["config"]["max_steps"], app["config"]["lr"]) == (7, 0.25)
    assert (
        app["config"]["client_data"].endswith("/data/client_{i}") and app["config"]["client_data"][0] == "/"
    )
    config = from_run_config(app["config"])
    assert (config.max_steps, config.lr, config.data_dir, config.token) == (7, 0.25, None, "hf_secret")
    assert main(words) == 2  # the folder is there already


def new_key(path, kind):
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


def test_a_signed_app_is_one_that_a_supernode_verifies(tmp_path):
    from flwr.supercore.fab import Fab
    from flwr.superlink.servicer.control.control_handlers import _format_verification
    from flwr.supernode.start_client_internal import _verify_fab

    key = new_key(tmp_path / "owner", "ed25519")
    signing = ("--signing_key", str(key), "--hub_url", "http://127.0.0.1:1234/")
    written(tmp_path / "app", "--preset", "fedgpl", *signing)
    signed = tmp_path / "app" / "signed"
    answer = json.loads((signed / "fetch-fab.json").read_text())
    assert answer["fab_url"] == "http://127.0.0.1:1234/hub/app.fab"
    trusted = yaml.safe_load((signed / "trusted-entities.yaml").read_text())
    assert list(trusted.values()) == [" ".join((tmp_path / "owner.pub").read_text().split()[:2])]
    content, said = (signed / "app.fab").read_bytes(), _format_verification(answer["verifications"])
    assert _verify_fab(Fab("", content, said), trusted)
    assert not _verify_fab(Fab("", content + b" ", said), trusted)
    assert b"owner" not in content and "signing_key" not in (tmp_path / "app" / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("kind", "mode", "mistake"),
    [("ed25519", 0o644, "others can read"), ("ecdsa", 0o600, "no Ed25519 key"), (None, 0, "cannot read")],
)
def test_a_key_that_cannot_sign_is_told(tmp_path, capsys, kind, mode, mistake):
    key = tmp_path / "key"
    if kind:
        new_key(key, kind).chmod(mode)
    words = f"flower --preset fedgpl --signing_key {key} --output_path {tmp_path}/app"
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    assert mistake in told and "signing_key" in told and not (tmp_path / "app").exists()


def test_who_a_node_is():
    assert client_number({"client": 3}, 3) == 2
    assert client_number({"partition-id": 0}, 3) == 0
    assert own_data({"client": 1}, None, 0) is None


def test_the_resident_answers_again_and_tells_what_failed(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), str(ROOT)]))

    def ask(word):
        return ask_resident("flower_echo", [word, b""], node=os.getpid())

    first, second = ask(b"a"), ask(b"a")
    assert first[:2] == second[:2] == [b"a", b""]
    assert first[2] == second[2]  # the same process
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ask(b"fail")
    for _ in range(2):  # the second time another one, which would otherwise outlive the test
        with pytest.raises(RuntimeError, match="has died"):
            ask(b"die")
        time.sleep(0.5)  # until its socket is closed
        Path(_address(os.getpid(), os.getppid())).unlink()


LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
COUNTS = {"examples": 4, "correct": 0, "labels": 9, "tokens": 40, "steps": 2}
GOOD = {"round": 1, "client": 0, "loss": 1.5, **COUNTS}


@pytest.mark.parametrize(
    ("facts", "tensors", "why"),
    [
        ({"round": 0}, pack(LIKE), "round is 0, not 1"),
        ({"client": 2}, pack(LIKE), "client is 2, not 0"),
        ({"examples": 0}, pack(LIKE), "examples is 0"),
        ({"tokens": 2.5}, pack(LIKE), "tokens is 2.5"),
        ({"labels": True}, pack(LIKE), "labels is True"),
        ({"examples": 5}, pack(LIKE), "examples is 5, and 4 were asked for"),
        ({"examples": -4}, pack(LIKE), "examples is -4"),
        ({"steps": 1.5}, pack(LIKE), "steps is 1.5"),
        ({"steps": 0}, pack(LIKE), "steps is 0 of 4 examples"),
        ({"steps": 5}, pack(LIKE), "steps is 5 of 4 examples"),
        ({"examples": math.nan}, pack(LIKE), "examples is nan"),
        ({"examples": True}, pack(LIKE), "examples is True"),
        ({"correct": 10}, pack(LIKE), "10 of 9 labels are right"),
        ({"loss": None}, pack(LIKE), "loss is None"),
        ({"loss": 10**400}, pack(LIKE), "not a loss"),
        ({"loss": -1.0}, pack(LIKE), "not a loss"),
        ({"loss": True}, pack(LIKE), "not a loss"),
        ({}, b"", "parameter a is missing"),
        ({}, b"no tensors", "not a safetensors file"),
        ({}, b"x" * 10_000, "more than the adapter's"),
        ({}, pack({"a": LIKE["a"]}), "parameter b is missing"),
        ({}, pack({**LIKE, "c": torch.zeros(4)}), "unknown parameter c"),
        ({}, pack({"a": LIKE["a"].T, "b": LIKE["b"]}), "a is"),
        ({}, pack({"a": LIKE["a"].double(), "b": LIKE["b"]}), "torch.float64"),
    ],
)
def test_what_a_client_answers_is_judged(facts, tensors, why):
    with pytest.raises(Unfit) as told:
        read_update(Content({**GOOD, **facts}, tensors), 0, 1, LIKE, 4, Algorithm(0.1), {})
    assert why in str(told.value)


# Every entry is another, and what lies across in memory comes back as it is read.
ROW = {"a": torch.arange(1.0, 7.0).view(3, 2).T, "b": torch.tensor([-1.5, 1e-30, 3e38, 0.1])}


def test_a_good_answer_is_read():
    update = read_update(Content(GOOD, pack(ROW)), 0, 1, LIKE, 4, Algorithm(0.1), {})
    assert (update.client, update.examples, update.loss, update.steps) == (0, 4, 1.5, 2)
    assert_close(update.payload, ROW)


def test_rows_and_masks_come_back():
    assert_close(unpack(pack(ROW), LIKE, torch.device("cpu"), all_of_it=True), ROW)
    part = {"b": ROW["b"]}
    assert_close(unpack(pack(part), LIKE, torch.device("cpu"), all_of_it=False), part)
    assert unpack(b"", LIKE, torch.device("cpu"), all_of_it=False) == {}
    names = [f"p{i:02}" for i in range(19)]
    for chosen in (set(), {"p00"}, {"p18", "p07"}, set(names)):
        assert chosen_by(mask_of(names, chosen), names) == chosen
        assert len(mask_of(names, chosen)) == 6
    with pytest.raises(Unfit):
        chosen_by("ffffff", names)


def test_strange_records_are_no_parcel():
    for text in ("{", "[" * 100_000, "9" * 5000, " " * 2**21):
        with pytest.raises(ValueError, match="not a message of fedloom") as why:
            from_records(RecordDict({"fedloom": ConfigRecord({"json": text})}))
        assert len(str(why.value)) < 400
    assert from_records(to_records(Content({"a": [1]}, b"xyz"))) == Content({"a": [1]}, b"xyz")


def test_a_client_remembers_by_the_word_that_the_server_took(tmp_path):
    """An answer that was lost on its way, and a server that goes on from its checkpoint, change nothing."""
    node, first = {"state-path": str(tmp_path)}, {"rule: w": torch.zeros(2)}

    def of(number):
        return {"rule: w": torch.full((2,), float(number))}

    memory = Memory(node, "run", 2)
    assert memory.recall(None, first) is None and memory.recall("ab-1", first) is None
    words = [f"ab-{round_}" for round_ in range(6)]
    for round_, word in enumerate(words):
        memory.keep(word, of(round_), kept_from=3, remembers=words[max(round_ - 1, 0)])
    assert (tmp_path / "run" / "client-0003").stat().st_mode & 0o077 == 0
    again = Memory(node, "run", 2)
    # Round 5's answer never arrived, or the server goes on from round 3 or from the one before.
    for round_ in (2, 3, 4, 5):
        assert torch.equal(again.recall(words[round_], first)["rule: w"], of(round_)["rule: w"])
    assert again.recall(words[1], first) is None, "no resumed server can ask for it"
    assert again.recall("../ab-5", first) is None and again.recall({"a": 1}, first) is None
    assert again.recall(words[5], {"rule: w": torch.zeros(3)}) is None
    (again.folder / "ab-5.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"ab-5\.safetensors"):
        again.recall(words[5], first)
