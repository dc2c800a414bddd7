"""Runs that share what they read, and the base, are to the bit what they are alone."""

import gc
import shutil
import time

import pytest
import torch
from run_files import write_sums
from tiny import save_tiny_llama
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fedloom import DflConfig, FedConfig, UserError, run_dfl, run_fed
from fedloom.data import sources
from fedloom.data.example import Example
from fedloom.training.shared import Shared

TAKES_TIME = ("seconds", "_per_second")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_sums(tmp_path_factory.mktemp("inputs"))
    save_tiny_llama(folder / "model")
    return folder


def given(inputs, out_dir, **more):
    common = {
        "data_dir": str(inputs),
        "lora_r": 2,
        "lr": 0.1,
        "dtype": "float32",
        "report_to": "none",
        "wave_tokens": 600,
        "out_dir": str(out_dir),
        "batch_size": 2,
    }
    return common | more


def fed(inputs, out_dir, exp_name, shared=None, **more):
    numbers = {"client_num": 2, "client_num_per_step": 2, "max_steps": 1, "val_steps": 1, "client_lr": 0.5}
    own = {"model_name": str(inputs / "model"), "data_name": "qa", "train_mode": "fed", **numbers, **more}
    return run_fed(FedConfig(**given(inputs, out_dir, exp_name=exp_name, **own)), shared=shared)


def dfl(inputs, out_dir, exp_name, shared=None, **more):
    own = {"num_clients": 3, "name": "ring", "num_rounds": 1, "local_steps": 1, "eval_every": 1, **more}
    own = {"model_checkpoint": str(inputs / "model"), "dataset_type": "qa", "save_every": 1} | own
    return run_dfl(DflConfig(**given(inputs, out_dir, exp_name=exp_name, **own)), shared=shared)


def left(run):
    """Its metrics without times, and the bytes of every tensor that it saved."""
    rows = [{k: v for k, v in row.items() if not k.endswith(TAKES_TIME)} for row in run.rows]
    saved = {
        str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("*.safetensors")
    }
    assert saved
    return rows, saved


@pytest.fixture
def reads(monkeypatch):
    """How often weights, tokenizers and rows are read, by the real functions."""
    counts = dict.fromkeys(("weights", "tokenizer", "rows"), 0)

    def count(owner, name, what):
        real = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[what] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(AutoModelForCausalLM, "from_pretrained", "weights")
    count(PreTrainedTokenizerFast, "from_pretrained", "tokenizer")
    count(sources, "read_examples", "rows")
    return counts


def test_runs_with_a_server_share_a_base_and_data_and_leave_nothing_behind(inputs, tmp_path, reads):
    """After one that folds into the base, one that failed, one with dropout, one that trains a prompt."""
    settings = {
        "folds": {"method": "FedEx-LoRA"},
        "virtual": {"peft": "prompt-tuning"},
        "others": {"seed": 2, "lora_dropout": 0.3, "client_num": 3, "data_seed": 5, "max_length": 64},
        "last": {},
    }
    shared, together = Shared(), {}
    for name, more in settings.items():
        together[name] = fed(inputs, tmp_path / "shared", name, shared, **more)
        if name == "folds":
            with pytest.raises(UserError, match="client_num"):
                fed(inputs, tmp_path / "shared", "fails", shared, client_num=500)
    assert reads == {"weights": 1, "tokenizer": 1, "rows": 9}  # a data_seed of its own, and back
    for name, more in settings.items():
        assert left(together[name]) == left(fed(inputs, tmp_path / "alone", name, **more)), name
    assert reads["weights"] == 1 + len(settings)


def test_peers_share_as_clients_of_a_server_do(inputs, tmp_path, reads):
    settings = {
        "plain": {},
        "frozen": {"method": "DFL-LoRA", "seed": 2},
        "attacked": {"attack": "sign_flip:2"},
    }
    shared = Shared()
    together = {name: dfl(inputs, tmp_path / "shared", name, shared, **of) for name, of in settings.items()}
    assert reads == {"weights": 1, "tokenizer": 1, "rows": 3}
    for name, more in settings.items():
        assert left(together[name]) == left(dfl(inputs, tmp_path / "alone", name, **more)), name


def test_what_is_not_the_same_is_read_anew(inputs, tmp_path, reads):
    """Another dtype; files that have changed; a base that somebody has written into."""
    shared, rows = Shared(), []

    def run(name, **more):
        rows.append(left(fed(inputs, tmp_path, name, shared, **more)))
        return reads["weights"]

    model = save_tiny_llama(tmp_path / "model")
    assert run("first", model_name=str(model)) == 1
    assert run("bfloat16", model_name=str(model), dtype="bfloat16") == 2
    assert run("float32", model_name=str(model)) == 3
    with torch.no_grad():
        next(shared._loaded.base.model.parameters()).add_(1)
    assert run("mended", model_name=str(model)) == 4
    assert rows[0] == rows[2] == rows[3] and reads["tokenizer"] == 1 and reads["rows"] == 3
    save_tiny_llama(model, seed=1)
    assert run("other", model_name=str(model)) == 5 and rows[4] != rows[3]


def test_two_bases_are_never_in_memory_at_once(inputs, tmp_path, monkeypatch):
    shared, real, there = Shared(), AutoModelForCausalLM.from_pretrained, []
    fed(inputs, tmp_path, "first", shared)
    shapes = [p.shape for p in shared._loaded.base.model.parameters()]

    def weights():
        every = [t for t in gc.get_objects() if type(t) is torch.nn.Parameter and not t.is_meta]
        return sum(t.shape in shapes for t in every)

    def read(*args, **kwargs):
        there.append(weights())
        return real(*args, **kwargs)

    gc.collect()  # as between the runs of a comparison
    others = weights() - len(shapes)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    fed(inputs, tmp_path, "second", shared, dtype="bfloat16")
    assert there == [others]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_run_reads_data_that_have_changed_as_it_would_alone(inputs, tmp_path, part):
    data, shared = tmp_path / "data", Shared()
    shutil.copytree(inputs, data, ignore=shutil.ignore_patterns("model"))
    own = {"dataset_path_template": str(data), "val_dataset_path_template": str(data), "client_num": 1}
    kinds = (
        (fed, {}),
        (fed, own | {"client_num_per_step": 1}),
        (fed, {"data_name": str(data), "data_dir": None}),
        (dfl, {}),
    )
    for number, (run, more) in enumerate(kinds):
        given = {"data_dir": str(data)} | more
        old = left(run(inputs, tmp_path, f"old-{number}", shared, **given))
        rows = (data / f"{part}.jsonl").read_text().splitlines()
        (data / f"{part}.jsonl").write_text("\n".join([*rows, *rows[:1]]))
        new = left(run(inputs, tmp_path, f"new-{number}", shared, **given))
        assert new != old and new == left(run(inputs, tmp_path, f"alone-{number}", **given))


def test_runs_that_fail_leave_nothing_behind_for_ever(inputs, tmp_path):
    shared, kept = Shared(), []
    for seed in range(3):
        with pytest.raises(UserError, match="client_num"):
            fed(inputs, tmp_path, f"fails-{seed}", shared, client_num=500, data_seed=seed)
        kept.append(sum(map(len, shared._done.values())))
    assert kept[1] <= 2 * kept[0] and kept[2] == kept[1]


def test_the_parts_of_10_000_clients_are_found_in_a_second():
    parts = [[Example(f"{client} and 1?", f"{client + 1}", "")] for client in range(10_000)]
    shared, began = Shared(), time.process_time()
    for _ in range(2):
        assert [shared.once(len, [part]) for part in parts] == [1] * 10_000
    assert time.process_time() - began < 1


def test_a_step_is_made_again_for_other_arguments_and_forgotten_where_nobody_asks():
    made = []

    def double(number):
        made.append(number)
        return 2 * number

    shared = Shared()
    assert [shared.once(double, n) for n in (1, 2, 1)] == [2, 4, 2] and made == [1, 2]
    shared.begin({})
    shared.once(double, 1)
    shared.forget_the_rest()
    assert [shared.once(double, n) for n in (1, 2)] == [2, 4] and made == [1, 2, 2]
