"""What a real peer tells of its examples: adapters as in one process, and an account that nothing resets.

Peers are threads here, with real streams between them; `runtimes/libp2p/test_processes.py` has processes.
"""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
from peer_network import Network
from run_files import adapter, assert_close, rows, write_problems
from tiny import save_tiny_llama

if find_spec("dp_accounting") is None:
    pytest.skip("dp-accounting is not installed", allow_module_level=True)

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account
from fedloom.options.check_peer import check
from fedloom.options.parsing import parse
from fedloom.options.peer import PeerConfig
from fedloom.runtimes.libp2p.schema import Schema
from fedloom.training import setup_graph
from fedloom.training.peer import drive
from fedloom.training.setup_graph import build_one, intervals

RUN = """
    --dataset_type arithmetic --num_clients 2 --num_rounds 3 --local_steps 2 --batch_size 4 --lr 0.01
    --dtype float32 --wave_tokens 2000 --report_to none --aggregator mean --partition iid --eval_every 3
    --privacy example --clip 1 --accountant rdp
"""
NOISED = "--noise_multiplier 0.5"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    data = write_problems(folder / "problems", train=40)
    return f"--model_checkpoint {save_tiny_llama(folder / 'llama')} --data_dir {data} {RUN}".split()


@pytest.fixture
def peers(words, tmp_path):
    """Starts these peers with options; the same folders again are the same peers, started again."""
    made = []

    def play(numbers, flags, spoil=lambda node: None):
        configs = {
            number: parse(PeerConfig, [*words, *flags.split(), "--client", str(number)], prog="peer")
            for number in numbers
        }
        parts = {number: build_one(config)[1] for number, config in configs.items()}
        network = Network(tmp_path, {1: [2], 2: [1]}, rounds=3, timeout=5.0 if len(numbers) > 1 else 0.1)
        made.append(network)
        schema = Schema.of(parts[numbers[0]].sent)
        network.expected = replace(network.expected, schema=schema)
        nodes = {number: network.node(number, meet=False) for number in numbers}

        def run(number, node):
            network.thread.run(node.exchange.meet())
            spoil(node)
            drive(parts[number], intervals(configs[number]), node, tmp_path / str(number))

        network.together(nodes, run)
        return nodes

    yield play
    for network in made:
        network.close()


def cost(rounds):
    """Of 20 examples a step takes 4 on average, twice a round."""
    return Account(0.2, 0.5, 1e-5, "rdp").epsilon(2 * rounds)


def test_peers_are_those_of_one_process_and_each_tells_its_epsilon(peers, words, tmp_path):
    seeded = f"{NOISED} --privacy_seed 7"
    peers([1, 2], seeded)
    dfl = f"dfl --name complete --out_dir {tmp_path} --exp_name one {seeded}".split()
    assert main([*dfl, *words]) == 0
    for number in (1, 2):
        assert_close(adapter(tmp_path / str(number)), adapter(tmp_path / "one", peer=number), 1e-6)
        told = rows(tmp_path / str(number))
        assert [row["epsilon"] for row in told] == [cost(n) for n in range(4)]
        assert all(row["delta"] == 1e-5 for row in told)
        assert not {"train_loss", "train_accuracy", "tokens"} & {name for row in told for name in row}
    for mine, all_ in zip(rows(tmp_path / "1")[1:], rows(tmp_path / "one")[1:], strict=True):
        assert mine["epsilon"] == all_["peer_epsilon"][0]


def test_a_killed_peer_goes_on_with_the_noise_that_it_drew(peers, tmp_path):
    """Killed once its second round is trained, before it has said anything of it."""

    def dies(node):
        say = type(node)._say

        def die_in_the_second(round_, trained):
            if round_ == 2:
                raise KeyboardInterrupt
            return say(node, round_, trained)

        object.__setattr__(node, "_say", die_in_the_second)

    with pytest.raises(KeyboardInterrupt):
        peers([1], NOISED, dies)
    kept = (tmp_path / "1" / "exchange" / "trained-000002.safetensors").read_bytes()

    def is_not_trained_again(node):
        assert (tmp_path / "1" / "exchange" / "trained-000002.safetensors").read_bytes() == kept

    peers([1], NOISED, is_not_trained_again)
    assert [row["epsilon"] for row in rows(tmp_path / "1")] == [cost(n) for n in range(4)]


def test_rounds_that_were_told_count_though_what_was_trained_is_lost(peers, tmp_path):
    peers([1], NOISED)
    (tmp_path / "1" / "exchange" / "trained-000003.safetensors").unlink()
    shutil.rmtree(tmp_path / "1" / "checkpoints")
    with pytest.raises(UserError, match="has told its neighbours another row"):
        peers([1], NOISED)
    assert [row["epsilon"] for row in rows(tmp_path / "1")] == [cost(3)], "before its first round"


def test_a_peer_whose_account_is_lost_does_not_begin_another(peers, tmp_path):
    peers([1], NOISED)
    shutil.rmtree(tmp_path / "1" / "exchange")
    with pytest.raises(
        UserError, match=r"exchange is gone, .* epsilon would begin at 0 again; put the folder"
    ):
        peers([1], NOISED)
    assert [row["epsilon"] for row in rows(tmp_path / "1")] == [cost(n) for n in range(4)]


def test_a_peer_ends_before_the_round_that_would_cost_too_much(peers, tmp_path):
    target = (cost(2) + cost(3)) / 2
    nodes = peers([1], f"{NOISED} --target_epsilon {target}")
    assert [row["epsilon"] for row in rows(tmp_path / "1")] == [cost(n) for n in range(3)]
    assert "val_loss" in rows(tmp_path / "1")[-1], "though only the third would be validated"
    final = json.loads((tmp_path / "1" / "summary.json").read_text())["final"]
    assert final["epsilon"]["value"] == cost(2) and final["delta"]["value"] == 1e-5
    assert nodes[1].journal._mixes[-1] == {"event": "closed", "round": 2, "late": []}
    peers([1], f"{NOISED} --target_epsilon {target}")  # its last round is ended again, and nothing is trained
    assert rows(tmp_path / "1")[-1]["epsilon"] == cost(2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--noise_multiplier 1 --privacy user", "privacy: user needs a server that adds noise to the sum"),
        ("--target_epsilon 8", "privacy: example needs --noise_multiplier, such as 1"),
        ("--noise_multiplier 1 --privacy none", "clip: 1.0 has no meaning without differential privacy"),
        (f"{NOISED} --clip adaptive", "clip: adaptive follows the norms of clients' changes"),
        (f"{NOISED} --target_epsilon 0.5", "target_epsilon: the first round would cost epsilon"),
        (f"{NOISED} --delta 0.2", "delta: 0.2 is not below 1 / 20 examples"),
    ],
)
def test_what_cannot_hide_examples_is_refused_before_weights_are_read(words, flags, said, monkeypatch):
    monkeypatch.setattr(setup_graph, "stack", lambda *_: pytest.fail("weights are read"))
    config = parse(PeerConfig, [*words, *flags.split()], prog="peer")
    config = replace(config, identity="a.key", neighbors="a.yaml")
    with pytest.raises(UserError, match=said):
        check(config)
        build_one(config)
