"""Preferences (prompt, chosen, rejected) through the commands that train on them with DPO."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import save_tiny_llama

from fedloom import read_run
from fedloom.commands.cli import main

RANK_ONE = "--lora_r 2 --dtype float32 --report_to none --max_length 64"


def rows(count):
    return [
        {"prompt": f"Which town is {i}?", "chosen": f"Oslo, {i}.", "rejected": f"I will not say {i}, no."}
        for i in range(count)
    ]


def as_messages(row):
    ask = {"role": "user", "content": row["prompt"]}
    return {side: [ask, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


def parquet(path, content):
    pq.write_table(pa.Table.from_pylist(content), path)
    return path


def jsonl(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def fed(model, data, out, *flags):
    words = f"fed --model_name {model} --data_name {data} --out_dir {out} --train_mode fed --client_num 2"
    words += (
        f" --client_num_per_step 2 --client_batch_per_step 4 --max_steps 3 --val_steps 1 --lr 0.01 {RANK_ONE}"
    )
    return main([*words.split(), *flags])


def dfl(model, data, out, *flags):
    words = f"dfl --model_checkpoint {model} --dataset_type {data} --out_dir {out} --num_clients 3"
    words += f" --name complete --num_rounds 2 --local_steps 2 --batch_size 4 --lr 0.01 {RANK_ONE}"
    return main([*words.split(), *flags])


def learns(run):
    """Whether a run began at log 2, where nothing is preferred, and got better."""
    first, last = run.rows[0], run.rows[-1]
    assert first["val_loss"] == pytest.approx(math.log(2), abs=1e-4) and first["val_accuracy"] == 0
    return last["val_loss"] < first["val_loss"] - 0.01 and last["val_accuracy"] > 0.5


def test_a_federation_learns_preferences_and_goes_on_where_it_stopped(model, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "fedloom.evaluation.reference")
    long = {"prompt": "Why?", "chosen": "Because.", "rejected": "no " * 60}
    mine = parquet(tmp_path / "p.parquet", [*rows(40), long])
    assert fed(model, mine, tmp_path) == 0
    assert "p.parquet: format preference, from the columns chosen, rejected" in capsys.readouterr().out
    whole = read_run(tmp_path / "test")
    assert learns(whole)
    assert sum(json.loads((tmp_path / "test/clients.json").read_text())["examples"]) < 41 * 0.6
    judge = f"eval --adapter {tmp_path}/test --all_checkpoints true --split validation --dtype float32"
    assert main(judge.split()) == 0
    shown = capsys.readouterr().out
    assert "chosen against rejected answer" in shown and "likelier" in shown
    base, *others = json.loads((tmp_path / "test/eval/eval.json").read_text())["adapters"]
    for scores, row in zip((base, *others[-1:]), (whole.rows[0], whole.rows[-1]), strict=True):
        assert scores["accuracy"] == row["val_accuracy"]
        assert scores["loss"] == pytest.approx(row["val_loss"], abs=1e-5)
    assert base["name"] == "base" and others[-1]["logp_margin"] > base["logp_margin"]
    assert others[-1]["margin"] > 0 == base["margin"]
    assert main(["report", str(tmp_path / "test"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    said = f"{others[-1]['logp_accuracy']:.1%} of the chosen answers likelier, {base['logp_accuracy']:.1%}"
    assert f"{said} before" in page
    assert "Margin of rewards, fedloom eval" in page
    assert fed(model, mine, tmp_path, "--exp_name", "parts", "--max_steps", "2") == 0
    asked = "log-probabilities of 32 preferences under the base"
    assert caplog.text.count(asked) == 2
    assert fed(model, mine, tmp_path, "--exp_name", "parts", "--resume", "--max_steps", "3") == 0
    assert caplog.text.count(asked) == 2, "what the base thinks of them is kept"
    assert read_run(tmp_path / "parts").rows[-1]["val_loss"] == whole.rows[-1]["val_loss"]
    kept = tmp_path / "parts" / "references.json"
    whole_file = kept.read_text()
    for damage in ("{", whole_file.replace('"base": "', '"base": "of another ')):
        kept.write_text(damage)
        assert fed(model, mine, tmp_path, "--exp_name", "parts", "--resume", "--max_steps", "3") == 0
        assert kept.read_text() == whole_file, "computed again"
    # A loose hold on the base and a firm one.
    assert fed(model, mine, tmp_path, "--exp_name", "beta", "--dpo_beta", "2", "--max_steps", "1") == 0
    assert read_run(tmp_path / "beta").rows[1]["val_loss"] < whole.rows[1]["val_loss"]


@pytest.mark.parametrize(
    "flags",
    [
        "--train_mode fedGradFocus --max_layer_num 1 --min_layer_num 1",
        "--train_mode local",
        "--lora_r 2,4 --lora_aggregation flora --server_optimizer none",
        "--peft prompt-tuning --client_lr 1",
    ],
)
def test_other_ways_to_train_do_so_too(model, tmp_path, flags):
    mine = jsonl(tmp_path / "p.jsonl", map(as_messages, rows(40)))
    assert fed(model, mine, tmp_path, *flags.split(), "--max_steps", "2") == 0
    run = read_run(tmp_path / "test")
    assert all(math.isfinite(row["train_loss"]) for row in run.rows[1:])
    assert run.rows[-1]["val_loss"] != run.rows[0]["val_loss"]


def test_peers_learn_preferences_split_or_each_their_own(model, tmp_path, capsys):
    mine = parquet(tmp_path / "p.parquet", rows(40))
    assert dfl(model, mine, tmp_path) == 0
    assert learns(read_run(tmp_path / "test"))
    clients = tmp_path / "clients"
    assert (
        main(f"split --data_name {mine} --num_clients 3 --partition iid --output_path {clients}".split()) == 0
    )
    own = ("--dataset_path_template", f"{clients}/client_{{i}}", "--val_dataset_path_template", str(mine))
    assert dfl(model, "qa", tmp_path, "--exp_name", "own", *own) == 0
    assert learns(read_run(tmp_path / "own"))
    plain = [{"prompt": "a", "completion": "b"}] * 4
    judged = ("--val_dataset_path_template", str(jsonl(tmp_path / "v.jsonl", plain)))
    assert dfl(model, "qa", tmp_path, "--exp_name", "mixed", *own[:2], *judged) == 2
    assert "preference" in capsys.readouterr().err


@pytest.mark.parametrize("beta", ["0", "-1", "nan", "x"])
def test_beta_is_a_number_above_0(model, tmp_path, beta, capsys):
    mine = jsonl(tmp_path / "p.jsonl", rows(12))
    assert fed(model, mine, tmp_path, "--dpo_beta", beta) == 2
    assert "dpo_beta" in capsys.readouterr().err
