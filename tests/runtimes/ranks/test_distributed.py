"""`torchrun -m fedloom`: as in one process, whatever the number of ranks, and after a rank has died."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from on_ranks import on_ranks, ranks_of, spoiled
from places import ROOT
from processes import wait_for_rows
from run_files import assert_close, rows, write_rows
from safetensors.torch import load_file
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.topology import build_topology, mixing
from fedloom.process import Place, place
from fedloom.runtimes.dealing import blocks, deal

pytestmark = pytest.mark.deploy

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
FED = "--fed_alg FedAdam --lr 0.003"  # Adam divides rounding, too, by the size of the gradient
DFL = "--num_clients 4 --name ring"
AT_ONCE = (
    "--privacy example --clip 1 --noise_multiplier 0.5 --privacy_seed 3 --accountant rdp "
    "--aggregator norm_bound --compress int8"
)
# Each run of two ranks is made in one process too.
RUNS = {
    "fedadam": ("fed", FED),
    "fedprox": (
        "fed",
        "--fed_alg FedProx --prox_mu 0.1 --lr 0.05 --peft prompt-tuning --num_virtual_tokens 4 "
        "--aggregator median",
    ),
    "focus": (
        "fed",
        f"{FED} --train_mode fedGradFocus --grad_eval l2 --max_layer_num 1 --min_layer_num 0 "
        "--server_data_fraction 0.2",
    ),
    "left-out": ("fed", f"{FED} --client_num 3"),
    "scaffold": ("fed", "--method SCAFFOLD --grad_accum_steps 1 --aggregator norm_bound"),
    "fedsa": ("fed", "--method FedSA-LoRA --lora_r 2,4 --compress topk:1"),
    "ditto": ("fed", "--method Ditto --client_optimizer adam --client_lr 0.001 --grad_accum_steps 1"),
    "flexlora": ("fed", "--method FlexLoRA --server_optimizer yogi --lr 0.001"),
    "flora": ("fed", "--method FLoRA --lora_r 2,4 --client_optimizer adam --client_lr 0.001"),
    "alie": ("fed", "--method FedAvg --attack alie:1 --attackers 2"),
    "answers": ("fed", f"{FED} --eval_generate_every 4 --eval_generate_limit 5"),
    "dfl-lora": ("dfl", DFL),
    "lora": (
        "dfl",
        f"{DFL} --training_type LoRA --client_optimizer sgd --lr 0.1 --aggregator trimmed_mean:0.34",
    ),
    "drops": (
        "dfl",
        "--num_clients 5 --name random_pairs --training_type LoRA --mix_head false --drop_peer 0.2 "
        "--drop_link 0.2 --eval_point before --client_optimizer sgd --lr 0.02",
    ),
    "ipm": ("dfl", f"{DFL} --attack ipm --attackers 3, --client_optimizer sgd --lr 0.1"),
    "pair": ("dfl", f"--num_clients 2 --name complete --lora_r 64 --mixing_step 0.5 {AT_ONCE}"),
    "at-once": ("fed", f"--method FedAvg --lora_r 64 {AT_ONCE}"),
}
SPOILED = {"left-out": 1}
SEED = 3407


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a command that trains tiny models for four rounds."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    save_tiny_bert(folder / "bert")
    moods = [("a fine film", 1), ("dull", 0), ("warm and wise", 1), ("a sad mess", 0)]
    for part, count in (("train", 60), ("validation", 9), ("test", 4)):
        pears = [
            {"question": f"Ann has {i} pears and finds {i % 7} {part[0]}. How many?", "final_ans": i + i % 7}
            for i in range(count)
        ]
        write_rows(folder / "pears" / f"{part}.jsonl", pears)
        films = [{"sentence": f"{moods[i % 4][0]} {i}", "label": moods[i % 4][1]} for i in range(count)]
        write_rows(folder / "films" / f"{part}.jsonl", films)
    commands = {
        "fed": f"fed --model_name {folder}/llama --data_dir {folder}/pears --data_name ChilleD/MultiArith "
        "--train_mode fed --client_num 6 --client_num_per_step 3 --client_batch_per_step 4 --lora_r 4 "
        "--client-lr 0.05 --max_steps 4 --val_steps 2 --patience 0",
        "dfl": f"dfl --model_checkpoint {folder}/bert --data_dir {folder}/films --lr 0.01 --batch_size 4 "
        "--num_rounds 4 --save_every 2",
    }
    rules = "--dtype float32 --report_to none --wave_tokens 600"

    def make(kind, out_dir, name, flags=""):
        return f"{commands[kind]} {rules} --out_dir {out_dir} --exp_name {name} {flags}".split()

    return make


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of runs in one process, and on two ranks."""
    return tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(words, places):
    """Every run of `RUNS`, in one process and on two ranks, and two mistakes on ranks only."""
    alone, ranks = places
    todo = [(words(kind, ranks, name, flags), SPOILED.get(name)) for name, (kind, flags) in RUNS.items()]
    mistakes = [
        words("dfl", ranks, "few", "--num_clients 1"),
        words("fed", ranks, "gpu", "--device cuda"),
        words("fed", ranks, "central", "--train_mode local"),
    ]
    found, said = on_ranks(ranks, [*todo, *((mistake, None) for mistake in mistakes)])
    for name, (kind, flags) in RUNS.items():
        with spoiled(SPOILED.get(name)):
            assert main(words(kind, alone, name, flags)) == 0
    return found, said


def numbers(value):
    """A metric to compare: a peer that sat out has no number."""
    return [math.nan if item is None else item for item in value] if isinstance(value, list) else value


def assert_same_run(ours, theirs, rounds=None):
    """Adapters and metrics of two runs are the same; ``rounds`` names the checkpoints compared."""
    files = sorted(file.relative_to(theirs) for file in theirs.rglob("adapter_model.safetensors"))
    files = [file for file in files if rounds is None or any(r in str(file) for r in rounds)]
    assert files and all((ours / file).exists() for file in files)
    # Where rounding decides whether int8 rounds a number up or down, that number is off by one step.
    options = (ours / "config.yaml").read_text()
    steps = "compress: int8" in options
    # SCAFFOLD divides what a client has moved by, and its rounding, by the rate.
    near = 4e-6 if "client_rule: scaffold" in options else 1e-6
    for file in files:
        mine, other = load_file(ours / file), load_file(theirs / file)
        assert_close(mine, other, 1e-3 if steps else near)
        assert all(((mine[name] - t).abs() > near).sum() <= 2 for name, t in other.items())
    for mine, other in zip(rows(ours), rows(theirs), strict=True):
        assert mine.keys() - {"bytes_between_ranks"} == other.keys() - {"bytes_between_ranks"}
        for name in other.keys() - {"seconds", "eval_seconds", "wall_seconds", "bytes_between_ranks"}:
            close = 1e-3 if steps else 1e-6
            expected = pytest.approx(numbers(other[name]), rel=2 * close, abs=close, nan_ok=True)
            assert numbers(mine[name]) == expected, (mine["round"], name)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_do_what_one_process_does(both, places, name):
    number = list(RUNS).index(name)
    assert [rank[number]["status"] for rank in both[0]] == [0, 0]
    assert_same_run(places[1] / name, places[0] / name)
    assert (places[1] / name / "clients.json").read_text() == (places[0] / name / "clients.json").read_text()


def test_a_client_that_diverges_is_left_out_on_ranks_too(both, places):
    assert all(row["clients_left_out"] == [1] for row in rows(places[1] / "left-out")[1:])


def test_rank_0_alone_writes_and_speaks(both, places):
    _, said = both
    for name, (kind, _) in RUNS.items():
        assert [row["round"] for row in rows(places[1] / name)] == [0, 1, 2, 3, 4]
        if kind == "dfl":
            assert (places[1] / name / "federated_training.log").read_text().count("round 4:") == 1
    assert said.count("round 4/4") == len(RUNS)


@pytest.mark.parametrize(
    ("number", "mistake"),
    [(0, "num_clients: 1 "), (1, "2 ranks on a machine with"), (2, "train_mode: local trains one model")],
)
def test_a_mistake_on_ranks_is_told_once(both, number, mistake):
    found, said = both
    if number == 1 and torch.cuda.device_count() > 1:
        pytest.skip("there are two GPUs")
    assert [rank[len(RUNS) + number]["status"] for rank in found] == [2, 2]
    assert said.count(f"error: {mistake}") + said.count(f"device: {mistake}") == 1


def test_without_torchrun_its_runtime_is_not_imported(both):
    assert not {"fedloom.runtimes.distributed", "fedloom.runtimes.meeting"} & set(sys.modules)


def test_updates_are_reduced_and_the_adapter_comes_back(both, places):
    row = load_file(places[1] / "fedadam" / "checkpoints" / "round-000004" / "adapter_model.safetensors")
    size = sum(t.numel() * 4 for t in row.values())
    # A ring sends twice the sum of two ranks, rank 0 sends the adapter once.
    assert all(r["bytes_between_ranks"] == 3 * size for r in rows(places[1] / "fedadam")[1:])


def sent_row(folder, *parts):
    path = folder / "checkpoints" / "round-000004" / "peer-0001" / "adapter_model.safetensors"
    return sum(t.numel() * 4 for name, t in load_file(path).items() if any(part in name for part in parts))


def test_mixing_moves_only_rows_that_the_other_rank_hears(both, places):
    # On a ring of four, two and two, every peer has one neighbour at the other rank.
    folder = places[1] / "dfl-lora"
    size = sent_row(folder, "lora_B", "classifier")
    assert [row["bytes_between_ranks"] for row in rows(folder)[1:]] == [4 * size] * 4
    assert [row["bytes_up"] for row in rows(folder)[1:]] == [8 * size] * 4
    # With pairs and drops: each peer whose partner of the round is on the other rank.
    folder = places[1] / "drops"
    size, graph = sent_row(folder, "lora_"), build_topology("random_pairs", 5, SEED)

    def moved(cut):
        links = [mixing(graph, round_, SEED, 0.2, 0.2).edges for round_ in range(4)]
        return [2 * size * sum((low < cut) != (high < cut) for low, high in edges) for edges in links]

    assert [row["bytes_between_ranks"] for row in rows(folder)[1:]] in (moved(2), moved(3))


def test_bytes_between_ranks_are_those_at_the_sockets(both, places):
    # One peer each: what crosses between ranks is what would cross the wire.
    found, _ = both
    number = list(RUNS).index("pair")
    for row, *received in zip(
        rows(places[1] / "pair")[1:], *(rank[number]["received"] for rank in found), strict=True
    ):
        assert row["bytes_between_ranks"] == row["bytes_up"] == row["bytes_down"]
        assert sum(received) == pytest.approx(row["bytes_between_ranks"], rel=0.05)


def test_all_at_once_bytes_between_ranks_are_those_at_the_sockets_too(both, places):
    found, _ = both
    number = list(RUNS).index("at-once")
    told = rows(places[1] / "at-once")[1:]
    assert all(row["epsilon"] > 0 for row in told)
    moved = sum(sum(rank[number]["moved"]) for rank in found)
    assert moved == pytest.approx(sum(row["bytes_between_ranks"] for row in told), rel=0.05)


def test_a_run_goes_on_with_another_number_of_ranks(both, words, places, tmp_path):
    alone, ranks = places
    more = {"fedadam": "--max_steps", "lora": "--num_rounds"}

    def going_on(name, rounds, out_dir):
        kind, flags = RUNS[name]
        return words(kind, out_dir, name, f"{flags} {more[name]} {rounds} --resume")

    for name in more:
        assert main(going_on(name, 6, ranks)) == 0
    found, _ = on_ranks(tmp_path, [(going_on(name, 8, ranks), None) for name in more])
    assert [one["status"] for rank in found for one in rank] == [0] * 4
    for name in more:
        assert main(going_on(name, 8, alone)) == 0
        assert_same_run(ranks / name, alone / name, rounds=("round-000004", "round-000008"))


def killed_under_torchrun(words, folder, rank):
    """Kill a rank of a run that torchrun started, after five rounds; returns what all said."""
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "fedloom", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    wait_for_rows(folder, 6, lambda: process.poll() is None)
    (victim,) = (
        child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == str(rank)
    )
    victim.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said  # torchrun's own, whatever ended a rank
    return said


def killed_among_forked(words, folder, rank):
    """The same of ranks without torchrun, which load torch once."""
    with ranks_of(folder.parent, [(words, None)]) as ranks:
        wait_for_rows(folder, 6, ranks[rank].is_alive)
        ranks[rank].kill()
        survivor = 1 - rank
        ranks[survivor].join(200)
    assert json.loads((folder.parent / f"found-{survivor}.json").read_text())[0]["status"] == 2
    return (folder.parent / "said.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "rank", "killed"), [("fed", 1, killed_under_torchrun), ("dfl", 0, killed_among_forked)]
)
def test_a_rank_that_dies_ends_the_run_and_it_resumes(words, tmp_path, kind, rank, killed):
    more, flags = {"fed": ("--max_steps", FED), "dfl": ("--num_rounds", DFL)}[kind]

    def command(place, rounds, *rest):
        return [*words(kind, tmp_path / place, "run", flags), more, str(rounds), *rest]

    folder = tmp_path / "killed" / "run"
    folder.parent.mkdir()
    said = killed(command("killed", 100_000), folder, rank)
    assert said.count("fedloom: error: round") == 1 and "another rank has died" in said
    assert "round-0000" in said and "--resume, with any number of ranks" in said

    last = max(int(path.parent.name.removeprefix("round-")) for path in folder.glob("checkpoints/*/state"))
    assert last >= 4
    end = last + 2 + last % 2
    assert main(command("killed", end, "--resume")) == 0
    assert main(command("whole", end)) == 0
    assert_same_run(folder, tmp_path / "whole" / "run", rounds=(f"round-{end:06d}",))


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 6))
def test_clients_are_dealt_by_their_work(costs, ranks):
    dealt = deal(costs, ranks)
    assert sorted(item for items in dealt for item in items) == list(range(len(costs)))
    assert all(items == sorted(items) for items in dealt)
    loads = [sum(costs[item] for item in items) for items in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.lists(st.integers(1, 1000), min_size=6, max_size=40), st.integers(1, 6))
def test_peers_lie_in_blocks_of_like_work(costs, ranks):
    dealt = blocks(costs, ranks)
    assert [item for block in dealt for item in block] == list(range(len(costs)))
    assert all(len(block) > 0 for block in dealt)
    share = sum(costs) / ranks
    assert all(sum(costs[item] for item in block) <= share + 2 * max(costs) for block in dealt)


def test_rows_of_the_matrix_are_of_those_that_are_heard():
    whole = mixing(build_topology("ring", 7, 0), 0, 0)
    for here in (range(0, 3), range(3, 7), range(0, 7)):
        heard = whole.heard_by(here)
        assert list(heard) == sorted({(peer + step) % 7 for peer in here for step in (-1, 0, 1)})
        np.testing.assert_array_equal(
            whole.rows(here).to_dense().numpy(), whole.dense()[here.start : here.stop][:, heard]
        )


def test_a_place_is_read_from_torchruns_environment():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert place(torchrun) == Place(3, 4, 1, 2)
    assert place({}) == place({"RANK": "1"}) == Place(0, 1, 0, 1)
    with pytest.raises(UserError, match="RANK=4, WORLD_SIZE=4"):
        place(torchrun | {"RANK": "4"})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistyped_flag_is_told_by_one_rank_of_a_machine(rank, monkeypatch, capsys):
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert main(["fed", "--clients", "3"]) == 2
    assert ("unknown" in capsys.readouterr().err) == (rank == 0)
