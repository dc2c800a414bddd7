"""`fedloom audit-privacy`: what it finds of runs that keep their promise, and of runs that were broken."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
from run_files import write_problems, write_rows
from tiny import TRAINING_LINES, save_tiny_bert, save_tiny_llama

if find_spec("dp_accounting") is None:
    pytest.skip("dp-accounting is not installed", allow_module_level=True)

from fedloom.client import private
from fedloom.client.private import ExamplePrivacy
from fedloom.commands.cli import main
from fedloom.federation import aggregate, update
from fedloom.federation.privacy.user import UserPrivacy
from fedloom.runtimes import in_process
from fedloom.training import audit_clients

RUN = """
    --data_name arithmetic --train_mode fed --server_optimizer none --client_num 2 --client_num_per_step 2
    --client_batch_per_step 1 --batch_size 2 --grad_accum_steps 1 --client_lr 0.05 --lora_r 4 --max_steps 2
    --dtype float32 --wave_tokens 2000 --accountant rdp --privacy_seed 5
"""
USER = "--privacy user --clip 0.5 --target_epsilon 1 --canaries 200 --inverted 0"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    write_problems(folder / "data", train=64)
    return ["--model_name", str(folder / "llama"), "--data_dir", str(folder / "data")]


@pytest.fixture
def audit(inputs, tmp_path, capsys):
    """Runs `fedloom audit-privacy`; returns the exit status, and what it wrote."""

    def run(*flags):
        out = tmp_path / "audit.json"
        words = ["audit-privacy", *inputs, *RUN.split(), "--output", str(out)]
        status = main([*words, *(word for flag in flags for word in flag.split())])
        return status, json.loads(out.read_text()) if out.exists() else {}

    return run


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--client_num_per_step 1 --seed 2",
        "--clip adaptive:0.1:0.5 --server_optimizer adam --seed 3",
        "--method FFA-LoRA --compress int8 --canaries 100 --seed 4",
        "--train_mode fedGradFocus --max_layer_num 1 --min_layer_num 0 --server_data_fraction 0.25",
    ],
)
def test_a_run_as_it_should_be_is_not_refuted(audit, capsys, more):
    status, found = audit(USER, more)
    assert status == 0 and found["holds"]
    assert 0 <= found["epsilon_lower_bound"] <= found["epsilon_proven"] <= 1
    assert found["confidence"] == 0.95 and found["rounds"] == 2
    printed = capsys.readouterr().out
    assert f"{found['guesses_right']} of {found['guesses']}" in printed and "epsilon, proven" in printed


def test_without_noise_nearly_as_much_is_found_as_the_canaries_can_show(audit):
    status, found = audit("--privacy user --clip 0.5 --noise_multiplier 0 --canaries 200 --inverted 0")
    assert status == 0 and found["epsilon_proven"] is None
    assert found["guesses_right"] == found["guesses"] == 200
    # 4.2 if one number of guesses were tried; here ten are.
    assert found["epsilon_lower_bound"] == pytest.approx(3.6, abs=0.1)


def noise_is_forgotten(monkeypatch):
    monkeypatch.setattr(UserPrivacy, "noised", lambda self, total, clip, round_: total)


def noise_is_divided_twice(monkeypatch):
    noised = UserPrivacy.noised

    def wrong(self, total, clip, round_):
        return noised(self, total, clip / self.per_round, round_)

    monkeypatch.setattr(UserPrivacy, "noised", wrong)


def clip_is_forgotten(monkeypatch):
    for module in (aggregate, update):
        monkeypatch.setattr(module, "clipped", lambda row, clip: (row, True))


def all_take_part(monkeypatch):
    monkeypatch.setattr(UserPrivacy, "sample", lambda self, round_: [*range(self.clients)])


def noise_is_forgotten_and_a_client_left_out(monkeypatch):
    """Whose change is not a number: neither server nor attacker counts it."""
    noise_is_forgotten(monkeypatch)
    encode = in_process.encode_update

    def wrong(algorithm, client, delta, *args):
        return encode(algorithm, client, {n: t / (client > 0) for n, t in delta.items()}, *args)

    monkeypatch.setattr(in_process, "encode_update", wrong)


@pytest.mark.parametrize(
    ("broken", "more"),
    [
        (noise_is_forgotten, ""),
        (noise_is_forgotten_and_a_client_left_out, "--max_steps 1"),
        (noise_is_divided_twice, ""),
        (clip_is_forgotten, ""),
        (
            all_take_part,
            "--client_num 16 --client_num_per_step 1 --batch_size 1 --max_steps 1 --canaries 400",
        ),
    ],
)
def test_a_run_that_breaks_its_promise_is_refuted(audit, monkeypatch, capsys, broken, more):
    broken(monkeypatch)
    status, found = audit(USER, more)
    assert status == 1 and not found["holds"]
    assert found["epsilon_lower_bound"] > found["epsilon_proven"]
    assert "with 95% confidence this run does not keep its promise" in capsys.readouterr().out


def test_scores_are_of_the_noise_that_is_added(audit, monkeypatch):
    """With an adaptive clip it depends on how many take part: also on how many canaries do."""
    added, assumed = [], []
    noised, ratio = UserPrivacy.noised, audit_clients.log_likelihood_ratio

    def adds(self, *args):
        added.append(self.sum_noise)
        return noised(self, *args)

    def assumes(seen, rate, noise):
        assumed.append(noise)
        return ratio(seen, rate, noise)

    monkeypatch.setattr(UserPrivacy, "noised", adds)
    monkeypatch.setattr(audit_clients, "log_likelihood_ratio", assumes)
    audit("--privacy user --clip adaptive:0.1:0.5 --noise_multiplier 1 --inverted 0 --max_steps 1")
    assert added == assumed and len(added) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--accountant pld --privacy_seed none", "privacy: none makes no promise to measure"),
        (f"{USER} --canaries 4", "canaries: 4 is not"),
        (f"{USER} --canaries 5000", "canaries: 5,000 need as many parameters"),
        (f"{USER} --attack sign_flip --attackers 1", "attack: sign_flip has clients that attack"),
        (
            f"{USER} --client_num 3 --client_num_per_step 3 --secure_aggregation 1",
            "secure_aggregation: 1 hides changes from the server",
        ),
        (f"{USER} --output .", "output: . is a folder; name a file in it"),
        (
            "--privacy example --clip 1 --noise_multiplier 1 --share body:1 --client_rule fedrep:1",
            "client_rule: fedrep:1 moves a part of the parameters in each step",
        ),
        (f"{USER} --target_epsilon 0.001 --noise_multiplier 1", "target_epsilon: there is not one round"),
        (f"{USER} --resume", "resume: an audit begins afresh"),
    ],
)
def test_what_cannot_be_audited_is_told_with_the_reason(audit, capsys, flags, said):
    status, _ = audit(flags)
    assert status == 2 and said in capsys.readouterr().err


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A classifier whose width is no limit, and short texts."""
    folder = tmp_path_factory.mktemp("reviews")
    save_tiny_bert(folder / "bert", hidden_size=64, num_labels=2)
    texts = ["Tom has apples", "buys 8 more", "24 / 6", f"{' '.join(TRAINING_LINES[:2])} z x k q w"]
    for split in ("train", "validation", "test"):
        write_rows(
            folder / f"{split}.jsonl", [{"sentence": t, "label": i % 2} for i, t in enumerate(texts * 2)]
        )
    return ["--model_name", str(folder / "bert"), "--data_dir", str(folder), "--data_name", "sst2"]


ALONE = "--privacy user --clip 0.1 --noise_multiplier 0.6 --canaries 8 --lora_dropout 0 --lora_alpha 64"


def test_where_no_factor_that_trains_reads_the_embeddings_that_is_told(audit, reviews, capsys):
    status, found = audit(ALONE, " ".join(reviews), "--method Fed-SB")
    assert status == 0 and found["inversion"] is None
    assert "Tokens were not rebuilt: no LoRA factor that trains reads" in capsys.readouterr().out


def test_pairs_of_answers_are_not_rebuilt_and_that_is_told(audit, tmp_path, capsys):
    pairs = [{"prompt": f"{i} + 1", "chosen": f" = {i + 1}", "rejected": f" = {i}"} for i in range(16)]
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.jsonl", pairs)
    status, found = audit(ALONE, f"--data_name {tmp_path} --data_dir {tmp_path}")
    assert status == 0 and found["inversion"] == []
    assert "Tokens were not rebuilt: examples are pairs of answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "method",
    ["--lora_r 8", "--method FFA-LoRA --lora_r 16", "--lora_r 8 --dtype bfloat16"],
)
def test_the_tokens_of_an_example_are_rebuilt_unless_noise_or_their_number_hide_them(audit, reviews, method):
    status, found = audit(ALONE, " ".join(reviews), method)
    assert status == 0
    share = {one["case"]: one["recovered"] / one["tokens"] for one in found["inversion"]}
    assert share["alone"] > 0.9
    assert share["alone, clip and noise"] < 0.3
    assert share["alone, more tokens than dimensions"] < 0.6
    examples = {one["case"]: one["examples"] for one in found["inversion"]}
    assert examples["alone"] == 4 and examples["sum of 2 clients"] == 2


EXAMPLE = """
    --privacy example --clip 0.01 --noise_multiplier 7 --client_num 1 --client_num_per_step 1 --batch_size 64
    --max_steps 1 --canaries 60 --inverted 0 --lora_dropout 0
"""


def no_noise_of_steps(monkeypatch):
    quiet = ExamplePrivacy.noised
    monkeypatch.setattr(ExamplePrivacy, "noised", lambda self, *args: quiet(replace(self, noise=0.0), *args))


def no_clip_of_examples(monkeypatch):
    sums = private.clipped_sums

    def wrong(model, leaves, frozen, clients, clip, *args):
        return sums(model, leaves, frozen, clients, 1e9, *args)

    monkeypatch.setattr(private, "clipped_sums", wrong)


SEVERAL_STEPS = "--batch_size 40 --client_batch_per_step 3 --noise_multiplier 12 --canaries 24"
"""Of 64 examples 40 are no canaries, and a step has 40 of them on average."""


@pytest.mark.parametrize(
    ("broken", "more"),
    [
        (None, ""),
        (None, "--batch_size 16 --noise_multiplier 2 --client_num 2 --canaries 30 --lora_dropout 0.1"),
        (no_noise_of_steps, ""),
        (no_clip_of_examples, ""),
        # What hides a step's gradient from who sees what the client sends does not hide it from the attacker.
        (no_noise_of_steps, "--clip_norm 0.0001 --client_rule proximal:0.1"),
        (no_noise_of_steps, "--share a --lora_dropout 0.1"),
        (no_noise_of_steps, SEVERAL_STEPS),
        (no_clip_of_examples, SEVERAL_STEPS),
    ],
)
def test_examples_are_canaries_of_the_client_that_adds_the_noise(audit, monkeypatch, broken, more):
    if broken:
        broken(monkeypatch)
    status, found = audit(EXAMPLE, more)
    assert found["holds"] == (status == 0) == (broken is None)
    if broken:
        assert found["guesses_right"] > 0.9 * found["guesses"]
