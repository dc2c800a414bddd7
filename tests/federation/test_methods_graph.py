"""The contract that every method keeps, and what is special of each: on a graph, without a server."""

import math
import shutil

import pytest
import torch
import yaml
from following import reading_once
from graph_rounds import PEERS, SHAPES, alone, going, graph, random_bank, ring, state_of, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from on_ranks import on_ranks
from run_files import adapter, lose_checkpoints, rows, state, states_kept, write_rows
from tiny import save_tiny_bert

from fedloom.commands.cli import main
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.aggregators.trimmed_mean import trimmed_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.choco import Estimates
from fedloom.federation.codecs.int4 import int4
from fedloom.federation.codecs.int8 import int8
from fedloom.federation.codecs.powersgd import powersgd
from fedloom.federation.codecs.random_mask import random_mask
from fedloom.federation.codecs.sign import sign
from fedloom.federation.codecs.topk import topk
from fedloom.federation.lora_aggregations.flexlora import flexlora
from fedloom.federation.peers import PeerState, mix, peer_round
from fedloom.federation.topology import build_topology, mixing
from fedloom.model.bank import AdapterBank
from fedloom.options import parts
from fedloom.options.methods import METHODS
from fedloom.options.peer import PeerConfig
from fedloom.training.peer import agreed_options

GRAPH = {row.name: row.settings(server=False) for row in METHODS if row.graph is not None}
MORE = {"Ravan": "--lora_r 4", "FedEx-LoRA": "--residual_rank 3"}  # r is a multiple of Ravan's heads
TRAIN = [{"sentence": f"{('fine', 'dull')[i % 2]} {i}", "label": 1 - i % 2} for i in range(24)]
QUICK = "--num_clients 4 --name ring --lr 0.01 --batch_size 3 --local_steps 2 --lora_r 2 --dtype float32"
FAULTS = (
    "--drop_peer 0.2 --drop_link 0.2 --client_optimizer sgd --report_to none --save_every 2 --eval_every 4"
)


@pytest.fixture(scope="module", autouse=True)
def one_reading():
    """All runs of this file have one model and one data set."""
    with reading_once():
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of `fedloom dfl` on a tiny model and a few sentences."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert", num_hidden_layers=2)  # so that there is something to select
    for part, content in (("train", TRAIN), ("validation", TRAIN[:4])):
        write_rows(folder / f"{part}.jsonl", content)
    inputs = f"--model_checkpoint {folder}/bert --data_dir {folder}"

    def make(out_dir, name, more):
        line = f"dfl {inputs} --out_dir {out_dir} --exp_name {name} --num_rounds 4 {QUICK} {FAULTS}"
        return [*line.split(), *more.split()]

    return make


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    """A run of every method, in this process."""
    folder = tmp_path_factory.mktemp("runs")
    with states_kept():
        for name in GRAPH:
            assert main(words(folder, name, f"--method {name} {MORE.get(name, '')}")) == 0
    return folder


@pytest.mark.parametrize("name", GRAPH)
def test_every_method_runs_counts_its_bytes_and_goes_on_as_if_never_stopped(runs, words, tmp_path, name):
    whole = runs / name
    assert any(row["bytes_up"] > 0 for row in rows(whole)[1:])
    assert all(math.isfinite(row["train_loss"] or math.nan) for row in rows(whole)[1:])
    again = tmp_path / name
    shutil.copytree(whole, again)
    lose_checkpoints(again, after=2)
    assert main(words(tmp_path, name, f"--resume {MORE.get(name, '')}")) == 0
    for key, t in state(whole).items():
        assert torch.equal(state(again)[key], t), key
    for column in ("bytes_up", "peer_selected_layers"):
        assert [row.get(column) for row in rows(again)] == [row.get(column) for row in rows(whole)]
    assert GRAPH[name].items() <= yaml.safe_load((whole / "config.yaml").read_text()).items()


@pytest.mark.deploy
def test_every_method_on_two_ranks_is_that_of_one_process(runs, words, tmp_path):
    runs_of = [words(tmp_path, name, f"--method {name} {MORE.get(name, '')}") for name in GRAPH]
    found, said = on_ranks(tmp_path, [(run, None) for run in runs_of])
    assert all(one["status"] == 0 for rank in found for one in rank), said
    for name in GRAPH:
        alone, ranks = state(runs / name), state(tmp_path / name)
        for key, t in alone.items():
            torch.testing.assert_close(ranks[key], t, rtol=1e-5, atol=1e-5)
        for column in ("bytes_up", "peer_selected_layers"):
            assert [row.get(column) for row in rows(tmp_path / name)] == [
                row.get(column) for row in rows(runs / name)
            ]


def test_the_methods_send_what_they_say(runs):
    shapes = {name: t.numel() for name, t in adapter(runs / "D-PSGD", peer=1).items()}
    numbers, of_a = sum(shapes.values()), sum(n for name, n in shapes.items() if "lora_A" in name)
    of_head = sum(n for name, n in shapes.items() if "lora_" not in name)
    per_edge = {
        "D-PSGD": 4 * numbers,
        "QG-DSGDm": 4 * numbers,
        "K-GT": 2 * 4 * numbers,
        "FedProx": 4 * numbers,
        "FlexLoRA": 4 * numbers,
        "FedEx-LoRA": 4 * (of_head + (numbers - of_head) * (2 + 3) // 2),  # of rank 2, and 3 of the residual
        "FedSA-LoRA": 4 * of_a,
        "DFL-LoRA": 4 * (numbers - of_a),
        "FedPer": 4 * (numbers - of_head),
        "FedRep": 4 * (numbers - of_head),
        "LG-FedAvg": 4 * of_head,
        "FedPAQ": numbers + 4 * len(shapes),
        "CHOCO-SGD": 8 * math.ceil(0.01 * numbers),
        # Four numbers and four scales per module.
        "Ravan": 4 * (sum(4 + 4 for name in shapes if "lora_A" in name) + of_head),
    }
    plain = rows(runs / "D-PSGD")[1:]
    for name, size in per_edge.items():
        links = [row["bytes_up"] // (4 * numbers) for row in plain]
        assert [row["bytes_up"] for row in rows(runs / name)[1:]] == [size * n for n in links], name


def test_what_is_not_shared_stays_with_its_peer(runs):
    for name in ("FedSA-LoRA", "D-PSGD"):
        one, other = adapter(runs / name, peer=1), adapter(runs / name, peer=3)
        for key in one:
            assert not torch.equal(one[key], other[key]), key
    first = state(runs / "FedSA-LoRA")
    for key, t in state(runs / "D-PSGD").items():
        assert key in first and first[key].shape == t.shape


def test_with_one_a_for_all_exact_aggregation_is_plain_gossip_and_says_so(words, tmp_path, runs, caplog):
    plain = state(runs / "DFL-LoRA")
    for name, flags in (("fedex", ""), ("fedex", "--residual_rank 3"), ("flexlora", "")):
        caplog.clear()
        folder = f"{name}{flags[-1:]}"
        line = f"--training_type DFL-LoRA --lora_aggregation {name} {flags}"
        assert main(words(tmp_path, folder, line)) == 0
        for key, t in plain.items():
            torch.testing.assert_close(state(tmp_path / folder)[key], t, rtol=1e-5, atol=1e-6)
        said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
        assert any(f"lora_aggregation: {name} has no effect" in line for line in said)
        assert any("residual_rank: 3 has no effect" in line for line in said) == bool(flags)


def test_proximal_pulls_to_where_the_round_began(words, tmp_path, runs):
    assert main(words(tmp_path, "far", "--method FedProx --client_rule proximal:0")) == 0
    assert main(words(tmp_path, "near", "--method FedProx --client_rule proximal:50")) == 0
    plain, far, near = (state(folder) for folder in (runs / "D-PSGD", tmp_path / "far", tmp_path / "near"))
    assert all(torch.equal(far[key], t) for key, t in plain.items())
    assert any(not torch.equal(near[key], t) for key, t in plain.items())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--share a", ["share: a", "DFL-LoRA", "nothing would be sent", "--training_type LoRA"]),
        ("--client_rule scaffold", ["client_rule: scaffold", "there is no client_lr", "such as none"]),
        ("--client_rule ditto", ["client_rule: ditto", "there is no server", "choose proximal"]),
        (
            "--client_rule fedrep",
            ["fedrep:1 trains personal parameters before shared ones", "--share body:1"],
        ),
        ("--method FedRep --client_rule fedrep:2", ["fedrep:2 is all that a client does", "2 steps"]),
        ("--share body:9", ["body:9 leaves clients all that trains"]),
        ("--client_rule feddyn", ["client_rule: feddyn", "there is no client_lr"]),
        ("--client_rule quasi_global --client_optimizer adam", ["adam", "--client_optimizer sgd"]),
        ("--method K-GT --aggregator median", ["gradient_tracking", "the mean of what neighbours send"]),
        ("--method SCAFFOLD", ["SCAFFOLD has no meaning without a server", "CHOCO-SGD"]),
        ("--method Krum --mixing_step 0.5", ["mixing_step: 0.5", "krum has none"]),
        ("--method Median --mixing_step 0.5", ["mixing_step: 0.5", "median"]),
        ("--mixing_step 0", ["mixing_step", "above 0"]),
        ("--train_factors square", ["train_factors: square", "factors that a server fixes"]),
        ("--train_factors heads", ["that lora_aggregation ravan fixes"]),
        ("--lora_aggregation ravan", ["ravan needs factors that are one for all", "--train_factors heads"]),
        ("--method Ravan --lora_r 6", ["lora_r: 6 is no multiple of 4 heads"]),
        ("--method Ravan --lora_r 4 --layer_votes both", ["lora_aggregation ravan is about all"]),
        ("--lora_aggregation fedsvd", ["fedsvd needs one A for all", "--training_type DFL-LoRA"]),
        ("--aggregator fedexp", ["aggregator: fedexp has no meaning without a server", "such as mean"]),
        ("--aggregator qfedavg", ["aggregator: qfedavg", "there is no client_lr", "such as mean"]),
        ("--lora_aggregation flexlora --aggregator median", ["lora_aggregation", "no aggregator but mean"]),
    ],
)
def test_a_combination_without_meaning_is_told_before_weights_are_read(words, tmp_path, capsys, flags, said):
    assert main(words(tmp_path, "wrong", flags)) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in said) and message.count("\n") == 1, message
    assert not (tmp_path / "wrong" / "config.yaml").exists()


PLUGIN = """
import torch
from fedloom.client.rules.none import none
from fedloom.options.parts import plug_in

@plug_in("client_rule")
def remembers():
    return none()._replace(kept=lambda row: {name: torch.zeros_like(t) for name, t in row.items()})

@plug_in("share")
def heads():
    return lambda names: frozenset(name for name in names if ".lora_" not in name)
"""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--client_rule remembers", "client_rule: remembers keeps something at a server, and there is none"),
        ("--share heads --mix_head false", "share: heads keeps all that is trained with its peer"),
    ],
)
def test_a_part_from_outside_that_has_no_meaning_on_a_graph_is_told(
    words, tmp_path, capsys, monkeypatch, flags, said
):
    monkeypatch.setattr(parts, "_plugged", dict(parts._plugged))
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert main(words(tmp_path, "wrong", f"--plugin {tmp_path}/mine.py {flags}")) == 2
    assert said in capsys.readouterr().err


def test_real_peers_must_agree_on_how_they_combine_and_not_on_how_they_train():
    plain, spelt = PeerConfig(), PeerConfig(aggregator="mean", compress="none", client_rule="proximal")
    assert agreed_options(plain) == agreed_options(spelt)
    for other in (
        PeerConfig(aggregator="median"),
        PeerConfig(lora_aggregation="flexlora"),
        PeerConfig(residual_rank=3),
        PeerConfig(share="a"),
        PeerConfig(compress="int8"),
        PeerConfig(mixing_step=0.5),
    ):
        assert agreed_options(other) != agreed_options(plain)


def gossip(bank, matrix, algorithm, state=None, **how):
    """A round without training; returns the bank after it."""
    after, _ = peer_round(
        state or state_of(bank), going([0.0] * bank.clients), matrix, set(bank.tensors), algorithm, **how
    )
    return after.bank


@pytest.mark.parametrize("matrix", [ring(), uniform(), graph([(0, 1), (2, 3)], 0.5)])
def test_trimming_nothing_is_the_product_with_the_matrix(matrix):
    bank = random_bank()
    ours = gossip(bank, matrix, Algorithm(1.0, aggregator=trimmed_mean(0.0)))
    for name, t in mix(bank, matrix.rows(range(PEERS)), set(SHAPES)).tensors.items():
        torch.testing.assert_close(ours.tensors[name], t, rtol=1e-12, atol=1e-12)


def test_on_the_complete_graph_every_peer_has_the_median_of_all():
    bank = random_bank()
    ours = gossip(bank, uniform(), Algorithm(1.0, aggregator=median()))
    for name, t in bank.tensors.items():
        torch.testing.assert_close(ours.tensors[name], t.median(0).values.expand_as(t))


def test_a_neighbour_far_away_carries_nobody_with_it():
    bank = random_bank()
    for t in bank.tensors.values():
        t[2] = 1e6
    for aggregator in (median(), trimmed_mean(0.2)):
        ours = gossip(bank, uniform(), Algorithm(1.0, aggregator=aggregator))
        honest = bank.rows([0, 1, 3, 4])
        for name, t in ours.tensors.items():
            assert (t <= honest.tensors[name].amax(0)).all() and (t >= honest.tensors[name].amin(0)).all()


def test_flexlora_gives_every_peer_of_the_complete_graph_the_best_product():
    bank, a, b = random_bank(), "q.lora_A.weight", "q.lora_B.weight"
    ours = gossip(bank, uniform(), Algorithm(1.0, aggregator=flexlora(aggregator=weighted_mean)))
    U, S, Vh = torch.linalg.svd((bank.tensors[b] @ bank.tensors[a]).mean(0))
    best = U[:, :2] * S[:2] @ Vh[:2]
    torch.testing.assert_close(ours.tensors[b] @ ours.tensors[a], best.expand(PEERS, -1, -1))
    frozen = AdapterBank({b: bank.tensors[b]})
    ours = gossip(frozen, ring(), Algorithm(1.0, aggregator=flexlora(aggregator=weighted_mean)))
    mixed = mix(frozen, ring().rows(range(PEERS)), {b})
    torch.testing.assert_close(ours.tensors[b], mixed.tensors[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm(1.0, aggregator=median()),
        Algorithm(1.0, aggregator=flexlora(aggregator=weighted_mean)),
        Algorithm(1.0, codec=int8()),
    ],
)
def test_a_peer_without_neighbours_stays_where_it_is(algorithm):
    bank = random_bank()
    begun = PeerState(0, bank, {}, Estimates(random_bank(1).row(0)))
    ours = gossip(bank, alone(), algorithm, begun)
    assert all(torch.equal(ours.tensors[name], t) for name, t in bank.tensors.items())


def test_a_peer_that_keeps_no_weight_for_itself_may_be_all_that_trimming_leaves():
    middle = AdapterBank({"w": torch.tensor([[0.0], [-1.0], [1.0]], dtype=torch.float64)})
    ours = gossip(middle, graph([(0, 1), (0, 2)], 0.5, 3), Algorithm(1.0, aggregator=trimmed_mean(0.4)))
    assert ours.tensors["w"][0] == 0


def test_a_product_that_is_too_large_is_not_taken():
    bank = random_bank().map(lambda t: t * 1e150)
    algorithm = Algorithm(1.0, aggregator=flexlora(aggregator=weighted_mean))
    after, report = peer_round(state_of(bank), going([0.0] * PEERS), ring(), set(SHAPES), algorithm)
    assert report.left_out == list(range(PEERS))
    assert all(torch.equal(after.bank.tensors[name], t) for name, t in bank.tensors.items())


def compressed(codec, step, rounds, size=400, peers=6, aggregator=weighted_mean, drop=0.2):
    """Gossip of random rows, with faults; returns the bank after each round."""
    bank = AdapterBank({"w": random_bank_of(peers, size)})
    now = PeerState(0, bank, {}, Estimates({"w": torch.zeros(size, dtype=torch.float64)}))
    topology, found = build_topology("ring", peers, 1), [bank]
    for round_ in range(rounds):
        matrix = mixing(topology, round_, 1, drop, drop, step)
        algorithm = Algorithm(1.0, codec=codec, aggregator=aggregator)
        now, _ = peer_round(now, going([0.0] * peers), matrix, {"w"}, algorithm, seed=3)
        found.append(now.bank)
    return found


def random_bank_of(peers, size):
    return torch.randn(peers, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def apart(bank):
    t = bank.tensors["w"]
    return float((t - t.mean(0)).norm())


@pytest.mark.parametrize(
    "exact",
    [topk(1.0), topk(1.0)._replace(lossy=True), random_mask(1.0)._replace(lossy=True), powersgd(1)],
)
def test_with_a_codec_that_loses_nothing_it_is_plain_gossip(exact):
    for ours, plain in zip(compressed(exact, 0.7, 5), compressed(Algorithm(1.0).codec, 0.7, 5), strict=True):
        torch.testing.assert_close(ours.tensors["w"], plain.tensors["w"], rtol=0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    codec=st.sampled_from([int8(), int4(), sign(), topk(0.1), topk(0.01), random_mask(0.1), powersgd(1)]),
    aggregator=st.sampled_from([weighted_mean, trimmed_mean(0.0)]),
    step=st.sampled_from([1.0, 0.1]),
    drop=st.sampled_from([0.0, 0.3]),
)
def test_compressed_gossip_keeps_the_mean_whatever_fails(codec, aggregator, step, drop):
    begun, *later = compressed(codec, step, 8, 50, aggregator=aggregator, drop=drop)
    for bank in later:
        torch.testing.assert_close(bank.tensors["w"].mean(0), begun.tensors["w"].mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("codec", "step", "rounds"),
    [
        (int8(), 1.0, 60),
        (int4(), 0.5, 60),
        (topk(0.1), 0.3, 200),
        (random_mask(0.3), 0.2, 200),
    ],
)
def test_compressed_gossip_comes_to_agree(codec, step, rounds):
    banks = compressed(codec, step, rounds)
    halfway, end = apart(banks[rounds // 2]), apart(banks[-1])
    assert end < 0.1 * halfway < 0.01 * apart(banks[0])


def test_with_signs_peers_come_near_each_other_slowly():
    """A sign says as little of a difference that is all in a few numbers as of any other."""
    banks = compressed(sign(), 0.2, 200)
    assert apart(banks[-1]) < 0.6 * apart(banks[100]) < 0.04 * apart(banks[0])


def test_an_edge_that_is_out_keeps_its_estimates():
    bank, first = random_bank(), random_bank(1).row(0)
    algorithm = Algorithm(1.0, codec=int8())
    now = PeerState(0, bank, {}, Estimates(first))
    now, _ = peer_round(now, going([0.0] * PEERS), graph([(0, 1)], 0.5), set(SHAPES), algorithm)
    assert now.estimates.rows.keys() == {(0, 1), (1, 0)}
    after, _ = peer_round(now, going([0.0] * PEERS), graph([(2, 3)], 0.5), set(SHAPES), algorithm)
    assert after.estimates.rows.keys() == {(0, 1), (1, 0), (2, 3), (3, 2)}
    for name in SHAPES:
        assert torch.equal(after.estimates.of((0, 1))[name], now.estimates.of((0, 1))[name])
        # Off by less than a step of the largest difference / 127.
        missing = bank.tensors[name][0] - now.estimates.of((0, 1))[name]
        assert missing.abs().max() <= (bank.tensors[name][0] - first[name]).abs().max() / 127 * 1.001
