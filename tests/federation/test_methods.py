"""The contract that every method keeps, and what is special of each: with a server."""

import json
import math
import re

import pytest
import torch
import yaml
from following import reading_once
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from run_files import adapter, checkpoint, lose_checkpoints, rows, state, states_kept, write_rows
from safetensors.torch import load_file
from tiny import save_tiny_llama

from fedloom.client.rules.scaffold import scaffold
from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.mean import mean, weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.aggregators.trimmed_mean import trimmed_mean
from fedloom.federation.codecs import feedback, flattened
from fedloom.federation.codecs.int4 import int4
from fedloom.federation.codecs.int8 import int8
from fedloom.federation.codecs.powersgd import powersgd
from fedloom.federation.codecs.random_mask import random_mask
from fedloom.federation.codecs.sign import sign
from fedloom.federation.codecs.topk import topk
from fedloom.federation.lora_aggregations.flexlora import flexlora
from fedloom.federation.ranks import Ranks
from fedloom.federation.server_optimizers.yogi import yogi
from fedloom.model.adapters.products import aligned, lora_pairs, truncated_sum
from fedloom.model.bank import AdapterBank, bytes_of
from fedloom.options.fed import FedConfig
from fedloom.options.methods import METHODS, PARTS
from fedloom.options.parts import ENTRY_POINTS, _installed, choices
from fedloom.runtimes.flower.rows import pack

SERVER = [row.name for row in METHODS if row.server is not None]
SMALL = "--data_name qa --client_num 4 --client_num_per_step 2 --client_batch_per_step 2 --grad_accum_steps 1"
QUICK = f"{SMALL} --client_lr 0.05 --lora_r 2 --dtype float32"


@pytest.fixture(scope="module", autouse=True)
def one_reading():
    """All runs of this file have one model and one data set."""
    with reading_once():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", 32), ("validation", 4), ("test", 2)):
        lines = [{"question": f"{part[0]} and {i}?", "answer": f"{i * 7 % 11}"} for i in range(count)]
        write_rows(folder / f"{part}.jsonl", lines)
    return folder


@pytest.fixture
def fed(model, data, tmp_path):
    """Runs `fedloom fed` on a tiny model; returns the run's folder."""

    def run(name, words, rounds=2):
        line = f"fed --model_name {model} --data_dir {data} --out_dir {tmp_path} --exp_name {name} {QUICK}"
        line += f" --wave_tokens 600 --report_to none --val_steps 1 --max_steps {rounds}"
        assert main([*line.split(), *words.split()]) == 0
        return tmp_path / name

    return run


MORE = {
    "FedGPL": "--max_layer_num 1 --min_layer_num 0",
    "Ravan": "--lora_r 4",  # a multiple of its heads
    "FLoRA": "--client_optimizer adamw",  # as in their papers, begun anew in every round
    "FedSVD": "--client_optimizer adamw",
}


@pytest.mark.parametrize("name", SERVER)
def test_every_method_runs_counts_its_bytes_and_goes_on_as_if_never_stopped(fed, name, capsys):
    more = MORE.get(name, "")
    with states_kept():
        whole = fed("whole", f"--method {name} {more}")
    assert all(math.isfinite(row["train_loss"]) and row["bytes_up"] > 0 for row in rows(whole)[1:])
    last, metrics = state(whole), rows(whole)
    lose_checkpoints(whole, after=1)
    fed("whole", f"--resume {more}")
    for key, t in last.items():
        assert torch.equal(state(whole)[key], t), key
    assert [row.get("train_loss") for row in rows(whole)] == [row.get("train_loss") for row in metrics]
    wanted = next(row for row in METHODS if row.name == name).settings(server=True)
    assert wanted.items() <= yaml.safe_load((whole / "config.yaml").read_text()).items()


# --- server optimisers


def test_yogi_is_the_papers_loop():
    changes = [
        torch.tensor([[0.3, -2.0, 0.0]]),
        torch.tensor([[0.1, 0.001, 0.5]]),
        torch.tensor([[-1.0, 3.0, 0.2]]),
    ]
    optimiser = yogi(1e-2, lr=0.1, client_lr=0.05)
    bank = AdapterBank({"w": torch.ones(1, 3, dtype=torch.float64)})
    w, m, v = [1.0] * 3, [0.0] * 3, [1e-4] * 3
    kept, active = optimiser.init(bank), torch.ones(1, dtype=torch.bool)
    for change in changes:
        bank, kept = optimiser.step(bank, AdapterBank({"w": change.double() / -0.05}), kept, active)
        for i, d in enumerate(change[0].double().tolist()):
            m[i] = 0.9 * m[i] + 0.1 * d
            v[i] = v[i] - 0.01 * d**2 * (v[i] > d**2 or -1 if v[i] != d**2 else 0)
            w[i] += 0.1 * m[i] / (math.sqrt(v[i]) + 1e-2)
    torch.testing.assert_close(bank.tensors["w"][0], torch.tensor(w, dtype=torch.float64), rtol=1e-10, atol=0)
    resting, _ = optimiser.step(bank, bank, kept, ~active)
    assert torch.equal(resting.tensors["w"], bank.tensors["w"])


def test_any_server_rule_goes_with_any_local_rule(fed):
    yogi_alone, both = (
        fed(n, f"--method FedYogi --lr 0.01 {w}") for n, w in (("y", ""), ("b", "--client_rule proximal:5"))
    )
    nothing = fed("n", "--method FedYogi --lr 0.01 --client_rule proximal:0")
    assert any(not torch.equal(adapter(both)[n], t) for n, t in adapter(yogi_alone).items())
    assert all(torch.equal(adapter(nothing)[n], t) for n, t in adapter(yogi_alone).items())


# --- SCAFFOLD

LR, STEPS = 0.1, 5


def descend(rule, x, minima, memories, received):
    """Clients with losses ‖w − minimum_k‖² / 2 times k + 1; returns models, memories and what is sent."""
    start = AdapterBank({"w": x.repeat(len(minima), 1)})
    stiffness = torch.arange(1, len(minima) + 1, dtype=torch.float64)[:, None]
    bank, memory = start, {"w": torch.stack(memories)}
    for _ in range(STEPS):
        gradients = AdapterBank({"w": stiffness * (bank.tensors["w"] - minima)})
        gradients = rule.correct(gradients, bank, start, memory, received)
        bank = bank.map(lambda w, g: w - LR * g, gradients)
    memory, sent = rule.finish(start, bank, torch.full((len(minima),), STEPS), memory, received)
    return bank.tensors["w"], memory["w"], sent["w"]


def play_scaffold(minima, rounds, sampled):
    rule, x = scaffold(client_lr=LR), torch.zeros(2, dtype=torch.float64)
    memories, kept = [torch.zeros_like(x) for _ in minima], {"w": torch.zeros_like(x)}
    for round_ in range(rounds):
        who = sampled(round_)
        after, new, sent = descend(rule, x, minima[who], [memories[k] for k in who], kept)
        for k, row in zip(who, new, strict=True):
            memories[k] = row
        x = x + (after - x).mean(0)
        kept = rule.absorb(kept, {"w": sent.mean(0)}, len(who) / len(minima))
    return x, memories, kept["w"]


def test_scaffold_is_the_papers_algorithm_with_option_2():
    minima = torch.tensor([[1.0, 0.0], [-3.0, 2.0], [0.5, 4.0]], dtype=torch.float64)
    everybody = lambda round_: [[0, 2], [1, 2], [0, 1]][round_ % 3]  # noqa: E731
    found, memories, kept = play_scaffold(minima, 7, everybody)
    x, c, own = torch.zeros(2).double(), torch.zeros(2).double(), [torch.zeros(2).double() for _ in range(3)]
    for round_ in range(7):
        ways, changes = [], []
        for place, k in enumerate(everybody(round_)):
            y = x.clone()
            for _ in range(STEPS):
                y = y - LR * ((place + 1) * (y - minima[k]) - own[k] + c)
            new = own[k] - c + (x - y) / (STEPS * LR)
            ways, changes = [*ways, y - x], [*changes, new - own[k]]
            own[k] = new
        x, c = x + sum(ways) / 2, c + 2 / 3 * sum(changes) / 2
    for mine, theirs in ((found, x), (kept, c), *zip(memories, own, strict=True)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_scaffold_finds_the_minimum_of_unlike_clients_and_fedavg_does_not():
    minima = torch.tensor([[1.0, 0.0], [-3.0, 2.0], [0.5, 4.0]], dtype=torch.float64)
    stiffness = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    best = (stiffness * minima).sum(0) / 6
    found, *_ = play_scaffold(minima, 200, lambda round_: [0, 1, 2])
    torch.testing.assert_close(found, best, rtol=0, atol=1e-9)
    x = torch.zeros(2, dtype=torch.float64)
    for _ in range(200):
        shrink = (1 - LR * stiffness) ** STEPS
        x = (shrink * x + (1 - shrink) * minima).mean(0)
    assert (x - best).norm() > 0.1


def test_with_equal_data_scaffolds_corrections_vanish():
    minima = torch.ones(3, 2, dtype=torch.float64)
    rule = scaffold(client_lr=LR)
    received, memory = {"w": torch.full((2,), 0.7)}, {"w": torch.full((3, 2), 0.7)}
    gradients = AdapterBank({"w": minima})
    assert torch.equal(rule.correct(gradients, gradients, gradients, memory, received).tensors["w"], minima)


# --- robust aggregators


def changes_of(deltas, weights=None):
    m = len(deltas)
    weights = torch.full((m,), 1 / m, dtype=torch.float64) if weights is None else weights
    return Changes({"w": torch.zeros_like(deltas[0])}, AdapterBank({"w": deltas}), weights)


NUMBERS = st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=9)


@given(numbers=NUMBERS, beta=st.floats(0, 0.49))
def test_median_and_trimmed_mean_are_those_of_each_number_alone(numbers, beta):
    deltas = torch.tensor(numbers, dtype=torch.float64)
    cut = math.floor(beta * len(numbers) + 1e-9)
    for column in range(3):
        ordered = sorted(row[column] for row in numbers)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        kept = ordered[cut : len(ordered) - cut]
        assert float(median()(changes_of(deltas))["w"][column]) == pytest.approx(middle, abs=1e-9)
        trimmed = float(trimmed_mean(beta)(changes_of(deltas))["w"][column])
        assert trimmed == pytest.approx(sum(kept) / len(kept), abs=1e-9)


def test_trimming_that_leaves_out_nobody_is_warned_of_once(caplog):
    for _ in range(2):
        trimmed_mean(0.15)(changes_of(torch.randn(4, 3)))
        trimmed_mean(0.25)(changes_of(torch.randn(4, 3)))
    (record,) = caplog.records
    assert "trimmed_mean:0.15 leaves out nobody of 4 senders" in record.getMessage()
    assert "takes 1 / 0.15 senders at least" in record.getMessage()


def test_trimming_nobody_is_the_weighted_mean():
    deltas = torch.randn(5, 4, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    for name, t in mean()(changes_of(deltas, weights)).items():
        torch.testing.assert_close(trimmed_mean(0.0)(changes_of(deltas, weights))[name], t)


@given(evil=st.floats(-1e18, 1e18))
def test_one_of_five_cannot_carry_it_out_of_the_range_of_the_others(evil):
    deltas = torch.tensor([[0.1], [0.2], [0.3], [0.4], [evil]], dtype=torch.float64)
    for aggregator in (median(), trimmed_mean(0.2)):
        assert 0.1 <= float(aggregator(changes_of(deltas))["w"]) <= 0.4


# --- products


@given(senders=st.integers(1, 4), rank=st.integers(1, 3), d_in=st.integers(2, 7), d_out=st.integers(2, 7))
@settings(deadline=None)
def test_flexlora_is_the_best_product_of_a_rank(senders, rank, d_in, d_out):
    torch.manual_seed(senders * 100 + rank * 10 + d_in)
    A, B = torch.randn(senders, rank, d_in).double(), torch.randn(senders, d_out, rank).double()
    weights = torch.rand(senders).double() + 0.1
    dense = torch.einsum("k,kor,kri->oi", weights, B, A)
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    best = U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]
    new_a, new_b = truncated_sum(A, B, weights, rank)
    assert new_a.shape == A[0].shape and new_b.shape == B[0].shape
    torch.testing.assert_close(new_b @ new_a, best, rtol=1e-9, atol=1e-10)


def test_flexlora_of_one_client_keeps_its_product_and_of_one_a_averages_b():
    name_a, name_b = "m.lora_A.weight", "m.lora_B.weight"
    before = {name_a: torch.randn(2, 6).double(), name_b: torch.randn(5, 2).double()}
    deltas = AdapterBank({n: torch.randn(3, *t.shape).double() for n, t in before.items()})
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    combine = flexlora(aggregator=weighted_mean)
    one = combine(Changes(before, deltas.rows([0]), torch.ones(1).double(), lora_pairs(before)))
    product = (before[name_b] + one[name_b]) @ (before[name_a] + one[name_a])
    theirs = (before[name_b] + deltas.tensors[name_b][0]) @ (before[name_a] + deltas.tensors[name_a][0])
    torch.testing.assert_close(product, theirs, rtol=1e-10, atol=1e-10)
    # A that nobody trains is not among the shared parameters: there is no pair, and B is averaged.
    b_alone = AdapterBank({name_b: deltas.tensors[name_b]})
    found = combine(Changes({name_b: before[name_b]}, b_alone, weights, lora_pairs([name_b])))
    torch.testing.assert_close(found[name_b], torch.einsum("k,kor->or", weights, deltas.tensors[name_b]))
    # The same A of all, among the shared ones: the product is A times the mean of B.
    same = AdapterBank(deltas.tensors | {name_a: torch.zeros(3, 2, 6).double()})
    found = combine(Changes(before, same, weights, lora_pairs(before)))
    product = (before[name_b] + found[name_b]) @ (before[name_a] + found[name_a])
    mean_b = before[name_b] + torch.einsum("k,kor->or", weights, deltas.tensors[name_b])
    torch.testing.assert_close(product, mean_b @ before[name_a], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keep_order", [False, True])
def test_new_factors_do_not_depend_on_the_signs_that_svd_chose(keep_order):
    like, B = torch.randn(3, 6).double(), torch.randn(5, 3).double()
    A, sign = torch.linalg.qr(torch.randn(6, 3).double()).Q.T, torch.tensor([[-1.0], [1.0], [-1.0]]).double()
    new_a, new_b = aligned(A, B, like, keep_order=keep_order)
    torch.testing.assert_close(new_b @ new_a, B @ A)
    assert (new_a - like).norm() <= (A - like).norm()
    for mine, theirs in zip(
        aligned(sign * A, B * sign.T, like, keep_order=keep_order), (new_a, new_b), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_where_nobody_moves_flexlora_leaves_the_factors_as_they_are():
    """Else a server optimiser would move them."""
    A, B = torch.linalg.qr(torch.randn(6, 2).double()).Q.T, torch.randn(5, 2).double()
    before = {"m.lora_A.weight": A, "m.lora_B.weight": B}
    still = AdapterBank({name: torch.zeros(3, *t.shape).double() for name, t in before.items()})
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    change = flexlora(aggregator=weighted_mean)(Changes(before, still, weights, lora_pairs(before)))
    assert all(t.abs().max() < 1e-12 for t in change.values())


# --- codecs

ROW = {"a": torch.randn(40, 7), "b": torch.randn(3) * 1e-4, "c": torch.zeros(5)}


def within_blocks(t, block, levels):
    """The step of each number: the largest of its block over the levels."""
    flat = t.flatten()
    return torch.cat([(piece.abs().amax() / levels).expand(len(piece)) for piece in flat.split(block)])


@pytest.mark.parametrize(
    ("codec", "block", "levels"),
    [(int8(), 10**6, 127), (int4(), 64, 7), (int4(6), 6, 7)],
    ids=["int8", "int4", "int4:6"],
)
def test_rounding_is_unbiased_and_off_by_less_than_a_step(codec, block, levels):
    tries, row = 400, ROW if levels == 127 else {"all": flattened(ROW)}
    total = {name: torch.zeros_like(t) for name, t in row.items()}
    for seed in range(tries):
        for name, t in codec.decode(codec.encode(row, seed), row).items():
            steps = within_blocks(row[name], block, levels).view_as(t)
            assert ((t - row[name]).abs() <= steps * 1.001).all()
            total[name] += t / tries
    for name, t in row.items():  # five standard errors of a rounding, whose variance is at most s² / 4
        steps = within_blocks(t, block, levels).view_as(t)
        assert ((total[name] - t).abs() <= 5 * steps / 2 / math.sqrt(tries) + 1e-9).all()


def test_two_numbers_of_four_bits_are_a_byte_and_one_is_too():
    for numbers in (1, 2, 63, 64, 65, 129):
        row = {"w": torch.arange(numbers).remainder(15).float() - 7}  # what has no need to be rounded
        row["w"][-1] = 7
        payload = int4().encode(row, 3)
        assert payload["pairs"].shape == (math.ceil(numbers / 2),)
        assert payload["scales"].shape == (math.ceil(numbers / 64),)
        torch.testing.assert_close(int4().decode(payload, row), row, rtol=0, atol=1e-5 if numbers > 14 else 1)


def test_a_sign_is_a_bit_and_its_size_the_mean_of_the_tensor():
    payload = sign().encode(ROW, 0)
    assert payload["signs"].shape == (math.ceil(sum(t.numel() for t in ROW.values()) / 8),)
    for name, t in sign().decode(payload, ROW).items():
        torch.testing.assert_close(t, torch.where(ROW[name] >= 0, 1.0, -1.0) * ROW[name].abs().mean())


def test_a_random_mask_sends_what_stands_at_places_that_the_seed_draws():
    codec, flat = random_mask(0.1), flattened(ROW)
    payload = codec.encode(ROW, 5)
    assert {n: tuple(t.shape) for n, t in payload.items()} == {"seed": (), "values": (29,)}
    found = flattened(codec.decode(payload, ROW))
    sent = found != 0
    assert torch.equal(found[sent], flat[sent]) and 20 < int(sent.sum()) <= 29
    other = flattened(codec.decode(codec.encode(ROW, 6), ROW)) != 0
    assert int((sent & other).sum()) < 15, "places are drawn anew for every payload"


def test_powersgd_is_near_to_the_best_product_and_exact_where_there_is_one():
    M = {"m.lora_B.weight": torch.randn(30, 2).double() @ torch.randn(2, 20).double(), "bias": torch.ones(7)}
    M = {name: t.double() for name, t in M.items()}
    exact = powersgd(2).decode(powersgd(2).encode(M, 1), M)
    torch.testing.assert_close(exact, M, rtol=1e-9, atol=1e-9)
    assert powersgd(2).encode(M, 1)["factors"].numel() == 2 * (30 + 20) + 7
    noisy = {"w": M["m.lora_B.weight"] + 0.1 * torch.randn(30, 20).double()}
    found = powersgd(2).decode(powersgd(2).encode(noisy, 1), noisy)["w"]
    U, S, Vh = torch.linalg.svd(noisy["w"])
    best = U[:, :2] * S[:2] @ Vh[:2]
    assert (noisy["w"] - found).norm() <= 1.001 * (noisy["w"] - best).norm()


@pytest.mark.parametrize(
    "codec", [topk(1.0), random_mask(1.0), powersgd(9)], ids=["topk", "mask", "powersgd"]
)
def test_a_whole_share_or_a_full_rank_loses_nothing(codec):
    row = {**ROW, "m": torch.randn(12, 8)}
    for name, t in codec.decode(codec.encode(row, 4), row).items():
        assert torch.equal(t, row[name]), name


@pytest.mark.parametrize("codec", [int8(), int4(), sign(), topk(0.1), random_mask(0.1), powersgd(1)])
def test_what_is_no_payload_is_refused_and_nothing_becomes_nothing(codec):
    row = {**ROW, "m": torch.randn(12, 8)}
    payload = codec.encode(row, 1)
    assert len(payload) <= 2, "each tensor costs a header on the wire"
    for name, t in payload.items():
        wrong = [t.double() if t.dtype != torch.float64 else t.float()]
        wrong += [torch.cat([t, t])] if t.ndim else [t[None]]
        for other in wrong:
            with pytest.raises((ValueError, KeyError)):
                codec.decode({**payload, name: other}, row)
        with pytest.raises(KeyError):
            codec.decode({n: t for n, t in payload.items() if n != name}, row)
    zeros = {name: torch.zeros_like(t) for name, t in row.items()}
    for t in codec.decode(codec.encode(zeros, 1), zeros).values():
        assert not t.any()


def test_topk_sends_the_largest_numbers_and_with_a_share_of_1_all():
    codec = topk(0.1)
    payload = codec.encode(ROW, 0)
    numbers = sum(t.numel() for t in ROW.values())
    assert len(payload["values"]) == math.ceil(0.1 * numbers)
    row = codec.decode(payload, ROW)
    left = torch.cat([(ROW[name] - t).flatten() for name, t in row.items()])
    assert left.abs().max() <= payload["values"].abs().min()
    assert not topk(1.0).lossy


@pytest.mark.parametrize("codec", [int8(), int4(), sign(), topk(0.05), random_mask(0.05), powersgd(1)])
def test_what_a_round_loses_comes_with_the_next(codec):
    residual, arrived, wanted = {}, {}, {}
    for seed in range(6):
        row = {name: torch.randn(t.shape, dtype=torch.float64) for name, t in ROW.items()}
        payload, residual = feedback(codec, row, residual, seed)
        for name, t in codec.decode(payload, row).items():
            arrived[name] = arrived.get(name, 0) + t
            wanted[name] = wanted.get(name, 0) + row[name]
    for name, t in wanted.items():
        torch.testing.assert_close(arrived[name] + residual[name], t, rtol=0, atol=1e-10)


@pytest.mark.parametrize("codec", [int8(), int4(), sign(), topk(0.05), random_mask(0.1), powersgd(1)])
def test_over_flower_a_payload_takes_the_bytes_that_are_counted(codec):
    """LoRA of rank 4 on the queries and values of MiniLM's six layers."""
    shapes = {"A": (4, 384), "B": (384, 4)}
    row = {f"{i}.{name}": torch.randn(shape) for i in range(12) for name, shape in shapes.items()}
    payload = codec.encode(row, 1)
    assert bytes_of(payload) <= len(pack(payload)) <= 1.05 * bytes_of(payload)


@pytest.mark.parametrize(
    "words, share",
    [
        ("--method FedPAQ", 0.26),
        ("--method MemSGD", 0.03),
        ("--method EF-SignSGD", 1 / 32),
        ("--method PowerSGD", 0.55),  # of rank 2
        ("--method FedAvg --compress int4", 9 / 64),
        ("--method FedAvg --compress random_mask:0.1", 0.1),
    ],
)
def test_fewer_bytes_are_sent_and_counted(fed, words, share):
    plain, coded = rows(fed("plain", "--method FedAvg")), rows(fed("coded", words))
    assert coded[1]["bytes_up"] < share * plain[1]["bytes_up"] + 200
    assert coded[1]["bytes_down"] == plain[1]["bytes_down"]


# --- personal parameters


def test_with_one_client_fedsa_is_local_training_and_both_kinds_of_adapters_are_saved(fed):
    words = "--client_num 1 --client_num_per_step 1"
    alone, apart = fed("alone", f"--method FedAvg {words}"), fed("apart", f"--method FedSA-LoRA {words}")
    own = load_file(apart / "checkpoints/round-000002/client-0001/adapter_model.safetensors")
    for name, t in adapter(alone).items():
        torch.testing.assert_close(own[name], t, rtol=0, atol=1e-6)
    base, tuned = rows(apart)[0], rows(apart)[-1]
    assert tuned["val_loss"] == base["val_loss"], "without a B the server's adapter changes nothing"
    assert tuned["personal_val_loss"] == pytest.approx(rows(alone)[-1]["val_loss"], rel=1e-5)
    assert rows(apart)[1]["bytes_up"] < rows(alone)[1]["bytes_up"]


# --- variants of LoRA


def test_variants_of_lora_reach_training_and_the_saved_adapter(fed):
    """One step from B = 0: with LoRA+ B goes so many times as far, with rsLoRA sqrt(rank) times."""
    one_step = "--method FedAvg --client_batch_per_step 1 --lora_dropout 0"
    plain, plus, root = (
        fed(name, f"{one_step} {words}", rounds=1)
        for name, words in (("n", ""), ("p", "--loraplus_lr_ratio 4"), ("r", "--use_rslora true"))
    )
    for name, t in adapter(plain).items():
        of_b = ".lora_B." in name
        torch.testing.assert_close(adapter(plus)[name], 4 * t if of_b else t, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(adapter(root)[name], 2**0.5 * t if of_b else t, rtol=1e-4, atol=1e-8)
    for folder, wanted in ((plain, False), (root, True)):
        saved = json.loads((checkpoint(folder) / "adapter_config.json").read_text())
        assert saved["use_rslora"] is wanted


# --- methods from outside


def test_the_plugin_of_the_page_runs_with_all_its_parts(fed, tmp_path, capsys):
    """The page's blocks as one file, as a user would save them."""
    page = (ROOT / "docs" / "extending.md").read_text()
    page = page[page.index("## A method") : page.index("## A graph")]
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "mine.py").write_text("".join(block for block in blocks if "plug_in" in block))
    folder = fed(
        "mine", f"--plugin {tmp_path}/mine.py --method SignSGD --client_rule shy:0.5 --compress half"
    )
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert options["aggregator"] == "majority_vote" and options["client_rule"] == "shy:0.5"
    plain = fed("plain", "--method FedAvg")
    assert rows(folder)[1]["bytes_up"] * 2 == rows(plain)[1]["bytes_up"]
    fed("nova", f"--plugin {tmp_path}/mine.py --method FedAvg --aggregator fednova --client_rule careful")
    lion = "--method FedAvg --server_optimizer lion:0.5 --lr 0.05 --aggregator reputation"
    fed("lion", f"--plugin {tmp_path}/mine.py {lion}")
    capsys.readouterr()
    assert main(["methods", "--json", "--plugin", f"{tmp_path}/mine.py"]) == 0
    assert "SignSGD" in {row["name"] for row in json.loads(capsys.readouterr().out)}


PLUGIN = """
from fedloom.options.methods import Method
from fedloom.options.parts import plug_in_method

plug_in_method(Method("Mine", "here", {"aggregator": "median"}, server={"train_mode": "fed"}))
plug_in_method(Method("Misspelt", "here", {"agregator": "median"}, server={"train_mode": "fed"}))
"""


def test_the_plugin_of_an_installed_package_need_not_be_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows_of_a_package.py").write_text(PLUGIN)
    metadata = tmp_path / "a_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = rows_of_a_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    _installed.cache_clear()
    try:
        assert main(["methods", "--json"]) == 0
    finally:
        _installed.cache_clear()
    assert "Mine" in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_from_python_a_plugins_method_sets_its_options_too(tmp_path):
    (tmp_path / "rows_of_mine.py").write_text(PLUGIN)
    config = FedConfig(method="Mine", plugin=f"{tmp_path}/rows_of_mine.py")
    assert (config.train_mode, config.aggregator, config.server_optimizer) == ("fed", "median", "none")
    with pytest.raises(UserError, match="Misspelt sets agregator, which is no option; did you mean aggreg"):
        FedConfig(method="Misspelt", plugin=f"{tmp_path}/rows_of_mine.py")


def test_auto_beside_a_method_leaves_the_choice_to_it():
    assert FedConfig(method="FedYogi", server_optimizer="auto").server_optimizer == "yogi"
    assert FedConfig(method="SCAFFOLD", client_rule="auto").client_rule == "scaffold"
    assert FedConfig(method="FedAvg", fed_alg="FedAdam", server_optimizer="auto").server_optimizer == "adam"


WRONG = """import torch
from fedloom.client.rules.none import none
from fedloom.federation.codecs import Codec
from fedloom.options.parts import plug_in
@plug_in("{option}")
def wrong(): return {body}
"""


@pytest.mark.parametrize(
    "option, body, said",
    [
        (
            "aggregator",
            "lambda changes: torch.ones(2) @ torch.ones(3)",
            "failed at .*wrong.py, line 6 .Runtime",
        ),
        (
            "aggregator",
            "lambda changes: {n: t.mean() for n, t in changes.deltas.tensors.items()}",
            "shape ()",
        ),
        ("aggregator", "lambda changes: {}", "returned no tensor for base_model"),
        ("aggregator", "lambda changes: None", "returned None, not a tensor for each"),
        ("aggregator", "5", "returned 5, not a function"),
        ("aggregator", "1 / 0", "failed at .*wrong.py, line 6 .ZeroDivisionError: division by zero"),
        ("share", "lambda names: set()", "not a set of some of the adapter's names"),
        ("client_rule", "none()._replace(correct=lambda g, *others: None)", "correct returned None"),
        ("compress", "Codec(lambda row, seed: row, lambda payload, like: {'x': 1}, True)", "decode returned"),
        ("server_optimizer", "none()", "not Optimiser"),
    ],
)
def test_what_a_plugins_part_does_wrong_is_told_in_a_line(option, body, said, model, data, tmp_path, capsys):
    (tmp_path / "wrong.py").write_text(WRONG.format(option=option, body=body))
    line = f"fed --model_name {model} --data_dir {data} --out_dir {tmp_path} {QUICK} --train_mode fed"
    line += f" --report_to none --max_steps 1 --plugin {tmp_path}/wrong.py --{option} wrong"
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert f"{option}: wrong" in told and re.search(said.replace("()", r"\(\)"), told), told
    assert "mend the plugin" in told and "Traceback" not in told


def test_a_plugin_that_ends_the_process_is_told(tmp_path, capsys):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    assert main(["fed", "--plugin", f"{tmp_path}/leaves.py"]) == 2
    assert "cannot be imported (SystemExit: 3)" in capsys.readouterr().err


# --- what is refused


@pytest.mark.parametrize(
    "words, said",
    [
        ("--method FedAvgg", ["method: FedAvgg", "did you mean FedAvg"]),
        ("--method DFL-LoRA", ["DFL-LoRA has no meaning with a server"]),
        ("--aggregator krumm", ["aggregator: krumm is not one of", "median"]),
        ("--aggregator trimmed_mean:0.5", ["trimmed_mean:0.5 leaves nobody", "below 0.5"]),
        ("--aggregator krum:0.5", ["krum:0.5 takes half of the senders", "below 0.5"]),
        ("--aggregator geometric_median:0", ["geometric_median:0 divides by 0"]),
        ("--aggregator norm_bound:0", ["norm_bound:0 clips every change to nothing"]),
        ("--aggregator centered_clipping:1:0.5", ["no whole number of steps"]),
        ("--aggregator median:3", ["median:3 gives 1 numbers, and median takes none"]),
        ("--aggregator trimmed_mean:x", ["x in trimmed_mean:x is no number"]),
        ("--compress topk:", ["nothing in topk: is no number"]),
        ("--compress topk:0", ["topk:0 sends nothing"]),
        ("--compress random_mask:1.5", ["random_mask:1.5 sends nothing that can be", "at most 1"]),
        ("--compress int4:7", ["int4:7 has no blocks of pairs", "must be even"]),
        ("--compress powersgd:0", ["powersgd:0 is no rank", "powersgd:2"]),
        ("--client_rule proximal:nan", ["nan in proximal:nan is no number"]),
        ("--client_rule proximal:-1", ["proximal:-1 is negative"]),
        ("--method FedDyn --lora_aggregation fedex", ["client_rule feddyn would change the adapter"]),
        ("--client_rule feddyn:0", ["feddyn:0 divides by 0"]),
        ("--client_rule quasi_global", ["quasi_global is about what neighbours send"]),
        ("--peft DoRA", ["peft: DoRA does not run", "norms of each client's whole weights", "--peft lora"]),
        ("--peft vera", ["peft: vera does not run: VeRA trains vectors"]),
        ("--peft (IA)3", ["peft: (IA)3 does not run"]),
        ("--peft rslora", ["peft: rslora is --peft lora with --use_rslora true"]),
        ("--peft p-tuning --use_rslora true", ["use_rslora: True is about LoRA, and peft is p-tuning"]),
        ("--method SCAFFOLD --loraplus_lr_ratio 4", ["steps of one learning rate", "loraplus_lr_ratio is 4"]),
        ("--client_rule ditto:-1", ["ditto:-1 is negative"]),
        ("--method Ditto --share a", ["a whole model of its own, and share a a part of one"]),
        ("--method Ditto --lora_aggregation fedex", ["changes the base, and with it the model"]),
        ("--client_rule fedrep:0.5", ["fedrep:0.5 is no number of steps"]),
        ("--share body:1.5", ["body:1.5 is no number of layers"]),
        ("--method FedPer --train_factors b", ["parameters of their own, which train whole"]),
        ("--method DiLoCo --client_rule scaffold", ["scaffold reads gradients off the steps of SGD"]),
        ("--method DiLoCo --train_mode local", ["client_optimizer: train_mode local trains by AdamW at lr"]),
        ("--server_optimizer yogi:0", ["yogi:0 divides by 0"]),
        ("--server_optimizer adagrad:0", ["adagrad:0 divides by 0"]),
        ("--server_optimizer momentum:1", ["momentum:1 is no momentum", "below 1"]),
        ("--server_optimizer nesterov:-0.1", ["nesterov:-0.1 is no momentum"]),
        ("--lora_aggregation flexlora --aggregator median", ["flexlora averages products"]),
        ("--lora_aggregation hetlora --aggregator median", ["hetlora weighs clients by the norms"]),
        ("--lora_aggregation lora_fair:0", ["lora_fair:0 may divide by 0", "above 0"]),
        ("--lora_aggregation fedsvd", ["fedsvd needs factors that are one for all", "--train_factors b"]),
        ("--method FedSVD --compress int8", ["fedsvd ends every round with new factors", "--compress none"]),
        ("--method FedSVD --server_optimizer yogi", ["the moments of server_optimizer yogi"]),
        ("--method FedSVD --lora_r 2,4", ["lora_r 2,4 gives clients factors of unequal rank"]),
        ("--lora_aggregation fedsb", ["both lets clients train them", "--train_factors square"]),
        (
            "--train_factors square",
            ["the factors that lora_aggregation fedsb fixes"],
        ),
        ("--method Ravan --lora_r 6", ["lora_r: 6 is no multiple of 4 heads"]),
        ("--method Ravan --lora_aggregation ravan:0", ["ravan:0 is no number of heads"]),
        ("--method Ravan --aggregator median", ["ravan averages products", "no aggregator but mean"]),
        ("--method Fed-SB --lora_r 2,4", ["lora_r 2,4 gives clients factors of unequal rank"]),
        ("--method Fed-SB --client_rule ditto", ["a personal model of client_rule ditto"]),
        ("--method Fed-SB --train_mode fedGradFocus", ["by whose gradients train_mode fedGradFocus"]),
        ("--method Ditto --privacy user --noise_multiplier 1", ["models of their own, whose validation"]),
        ("--lora_aggregation flexlora --share a", ["needs both factors"]),
        ("--share a --peft p-tuning", ["share: a is about LoRA's factors"]),
        ("--share a --train_mode fedGradFocus", ["share: a leaves every client a part of its own"]),
        ("--compress int8 --train_mode local", ["compress: train_mode local"]),
        ("--lora_r 4,x", ["lora_r: 4,x is not a whole number"]),
        ("--lora_r 4,8 --peft p-tuning", ["lora_r: 4,8", "p-tuning has no rank"]),
        ("--lora_r 4,8 --train_mode fedGradFocus", ["lora_r: 4,8 gives clients ranks of their own"]),
        ("--plugin nowhere.py", ["plugin: nowhere.py cannot be imported"]),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_loaded(model, words, said, capsys):
    capsys.readouterr()
    status = main(["fed", "--model_name", str(model), "--train_mode", "fed", *words.split()])
    told = capsys.readouterr().err
    assert status == 2 and told.count("\n") == 1 and "Traceback" not in told
    assert all(word in told for word in said), told


def test_the_table_is_whole():
    for row in METHODS:
        for part in PARTS:
            text = row.sets.get(part.option, part.default)
            assert text.partition(":")[0] in choices(part), row.name


def test_methods_are_listed_as_objects(capsys):
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed} == {row.name for row in METHODS}
    assert all(type(row["server"]) is type(row["graph"]) is bool for row in listed)


# --- unequal ranks


def test_clients_of_unequal_rank_send_what_they_have_and_equal_ranks_change_nothing(fed):
    same, listed = rows(fed("same", "--method FedAvg")), rows(fed("listed", "--method FedAvg --lora_r 2,2"))
    assert [row.get("train_loss") for row in same] == [row.get("train_loss") for row in listed]
    mixed = fed("mixed", "--method FedAvg --lora_r 1,2,4 --client_num_per_step 4")
    per_rank = same[1]["bytes_up"] / 2 / 2  # of two clients of rank 2, each
    assert rows(mixed)[1]["bytes_up"] == rows(mixed)[1]["bytes_down"] == per_rank * (1 + 2 + 4 + 1)
    assert {t.shape[0] for name, t in adapter(mixed).items() if "lora_A" in name} == {4}


@pytest.mark.parametrize(
    "words",
    [
        "--compress int8",
        "--method SCAFFOLD",
        "--method FlexLoRA",
        "--method HetLoRA",
        "--share a",
        "--client_rule ditto --client_optimizer adamw --client_lr 0.001",
    ],
)
def test_unequal_ranks_go_with_the_other_parts(fed, words):
    method = words if "method" in words else f"--method FedAvg {words}"
    folder = fed("run", f"{method} --lora_r 1,3 --client_num_per_step 4")
    assert all(math.isfinite(row["train_loss"]) for row in rows(folder)[1:])
    for file in folder.glob("checkpoints/round-000002/client-*/adapter_model.safetensors"):
        own = next(t for name, t in load_file(file).items() if "lora_A" in name)
        assert own.shape[0] == (1, 3)[(int(file.parent.name[-1]) - 1) % 2]


def test_what_a_client_of_a_smaller_rank_holds_is_its_part_of_the_servers_product():
    name_a, name_b = "m.lora_A.weight", "m.lora_B.weight"
    before = {name_a: torch.randn(4, 6).double(), name_b: torch.randn(5, 4).double()}
    ranks = Ranks([2, 4], 4, [2.0, 1.0], products=True)
    own = ranks.handed_out(before, 0)
    # s_k / s_R · B_k A_k = B[:, :2] A[:2], and what is beyond is zero.
    torch.testing.assert_close(2.0 * own[name_b] @ own[name_a], before[name_b][:, :2] @ before[name_a][:2])
    assert not own[name_a][2:].any() and not own[name_b][:, 2:].any()
    # Two clients that do not move: FlexLoRA's product is the mean of what they hold.
    nothing = {name: torch.zeros_like(t) for name, t in before.items()}
    moved = [ranks.change(before, ranks.sent(nothing, k), k) for k in (0, 1)]
    weights, scales = torch.tensor([0.5, 0.5]).double(), torch.tensor([2.0, 1.0]).double()
    arrived = Changes(before, AdapterBank.stack(moved), weights, lora_pairs(before), scales)
    change = flexlora(aggregator=weighted_mean)(arrived)
    product = (before[name_b] + change[name_b]) @ (before[name_a] + change[name_a])
    expected = (before[name_b][:, :2] @ before[name_a][:2] + before[name_b] @ before[name_a]) / 2
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-9)
    # Factors are padded with zeros: beyond its rank a client's are none.
    padding = Ranks([2, 4], 4, [2.0, 1.0], products=False)
    change = padding.change(before, padding.sent(nothing, 0), 0)
    torch.testing.assert_close(before[name_a] + change[name_a], padding.handed_out(before, 0)[name_a])
