"""Which of LoRA's factors train in a round: FFA-LoRA, RoLoRA, and both factors in turns on a graph."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main
from fedloom.federation.train_factors.alternate import alternate
from fedloom.federation.train_factors.b import b
from fedloom.federation.train_factors.both import both

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "head"
QUICK = "--lora_r 2 --dtype float32 --report_to none"


def test_b_is_first_and_what_is_no_factor_always_trains():
    turns = [alternate(2.0)((A, B, HEAD), round_) for round_ in range(5)]
    assert turns == [{B, HEAD}, {B, HEAD}, {A, HEAD}, {A, HEAD}, {B, HEAD}]
    assert [b()((A, B, HEAD), round_) for round_ in (0, 7)] == [{B, HEAD}] * 2
    assert both()((A, B, HEAD), 3) == {A, B, HEAD}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def fed(model, tmp_path):
    """Runs `fedloom fed` for three rounds; returns the adapters, from that of round 1 on, and the rows."""
    lines = [json.dumps({"question": f"{i} and {i}?", "answer": f"{i * 7 % 11}"}) for i in range(16)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:2]))
    (tmp_path / "validation.jsonl").write_text("\n".join(lines[:2]))

    def run(name, words):
        line = f"fed --model_name {model} --data_name qa --data_dir {tmp_path} --out_dir {tmp_path}"
        line += f" --exp_name {name} {QUICK} --client_num 2 --client_num_per_step 2 --client_lr 0.5"
        assert main([*line.split(), *["--val_steps", "1", "--max_steps", "3"], *words.split()]) == 0
        return adapters(tmp_path / name), metrics(tmp_path / name)

    return run


def adapters(folder, inner=""):
    return [
        load_file(folder / f"checkpoints/round-{n:06d}" / inner / "adapter_model.safetensors")
        for n in (1, 2, 3)
    ]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]


def moved(before, after):
    """The factors, "A" or "B", that some module changed between two adapters."""
    return {name.split("lora_")[1][0] for name, t in after.items() if not torch.equal(before[name], t)}


def test_with_a_server_what_rests_stays_and_only_what_trains_is_sent(fed):
    whole, _ = fed("fedavg", "--method FedAvg")
    in_turns, rows = fed("rolora", "--method RoLoRA")
    assert moved(*in_turns[:2]) == {"A"} and moved(*in_turns[1:]) == {"B"}
    a = sum(4 * t.numel() for name, t in whole[0].items() if "lora_A" in name)
    b = sum(4 * t.numel() for name, t in whole[0].items() if "lora_B" in name)
    assert [row["bytes_up"] for row in rows] == [2 * b, 2 * a, 2 * b]
    # What trained in the round before has changed at the server.
    assert [row["bytes_down"] for row in rows] == [2 * b, 2 * (a + b), 2 * (a + b)]
    frozen, rows = fed("ffa", "--method FFA-LoRA")
    assert moved(frozen[0], frozen[2]) == {"B"}
    assert [row["bytes_down"] for row in rows] == [2 * b] * 3
    endless, _ = fed("endless", "--method FedAvg --train_factors alternate:9")
    assert all(torch.equal(endless[2][name], t) for name, t in frozen[2].items())
    # Of Yogi's moments those of the resting factor rest as well, so that nothing moves it.
    assert moved(*fed("yogi", "--method RoLoRA --server_optimizer yogi --lr 0.01")[0][:2]) == {"A"}


@pytest.fixture
def dfl(tmp_path):
    """Runs `fedloom dfl` for three rounds; returns the adapters of peer 1."""
    save_tiny_bert(tmp_path / "bert", num_hidden_layers=1)
    lines = [json.dumps({"sentence": f"{('fine', 'dull')[i % 2]} {i}", "label": i % 2}) for i in range(24)]
    for part in ("train", "validation"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))

    def run(name, words):
        line = f"dfl --model_checkpoint {tmp_path}/bert --data_dir {tmp_path} --out_dir {tmp_path} {QUICK}"
        line += f" --exp_name {name} --num_clients 3 --name complete --num_rounds 3 --save_every 1"
        line += " --mix_head false --lr 0.05 --local_steps 2 --batch_size 3"
        assert main([*line.split(), *words.split()]) == 0
        return adapters(tmp_path / name, "peer-0001")

    return run


def test_on_a_graph_turns_that_never_end_are_dfl_lora(dfl):
    frozen, endless = (
        dfl("dfl", "--training_type DFL-LoRA"),
        dfl("endless", "--training_type LoRA --train_factors alternate:9"),
    )
    for name, t in frozen[2].items():
        torch.testing.assert_close(endless[2][name], t, rtol=1e-6, atol=1e-7)


def test_on_a_graph_only_one_factor_moves_with_its_moments(dfl):
    """On a complete graph all peers have one A and one B after every round, as with a server."""
    in_turns = dfl("turns", "--method ADF-LoRA --client_optimizer adam")
    moved_in = [
        {name.split("lora_")[1][0] for name, t in after.items() if "lora_" in name and far(before[name], t)}
        for before, after in itertools.pairwise(in_turns)
    ]
    assert moved_in == [{"A"}, {"B"}]


def far(before, after):
    """Whether something has moved by more than averaging equal numbers rounds."""
    return float((before - after).abs().max()) > 1e-6


@pytest.mark.parametrize(
    "command, words, said",
    [
        ("fed", "--train_factors alternate:0", "train_factors: alternate:0 is no turn"),
        ("fed", "--train_factors b --share a", "share a needs both"),
        ("fed", "--train_factors b --lora_aggregation flexlora", "lora_aggregation flexlora needs both"),
        ("fed", "--method RoLoRA --peft p-tuning", "p-tuning has none"),
        ("fed", "--method RoLoRA --train_mode local", "method: RoLoRA is one of federation"),
        ("dfl", "--train_factors b --training_type LoRA", "choose --training_type DFL-LoRA"),
        ("dfl", "--train_factors alternate --training_type DFL-LoRA", "freezes A for good"),
    ],
)
def test_what_has_no_meaning_is_refused(model, command, words, said, capsys):
    mode = "" if command == "dfl" or "--train_mode" in words else "--train_mode fed"
    assert main([command, f"--model_name={model}", *mode.split(), *words.split()]) == 2
    assert said in capsys.readouterr().err
