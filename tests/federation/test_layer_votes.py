"""Gradient priority on a graph: who votes for what, what each link carries, and what stays as it was.

That a run goes on as if never stopped, and is the same on two ranks, is the contract of all methods.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from graph_rounds import PEERS, graph, ring, state_of, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import rows, state, write_rows
from tiny import save_tiny_bert

from fedloom.commands.cli import main
from fedloom.federation.layer_votes import LayerVotes, voted_round
from fedloom.federation.matrix import check_mixing
from fedloom.federation.peers import Trained, peer_round
from fedloom.federation.priority import Projection
from fedloom.federation.topology import build_topology, mixing
from fedloom.model.bank import AdapterBank

LAYERS = {
    number: [Projection(f"{number}.lora_A.weight", f"{number}.lora_B.weight", 2.0, lambda: torch.ones(4, 6))]
    for number in (1, 2, 4)
}
SHAPES = {p.a: (2, 6) for (p,) in LAYERS.values()} | {p.b: (4, 2) for (p,) in LAYERS.values()}
NAMES = {*SHAPES, "head"}


def votes(**more):
    given = {"highest": 1, "lowest": 0, "grad_eval": "l2", "carried": "either", "rested": True}
    return LayerVotes(LAYERS, **(given | {"seed": 0, "frozen": {}} | more))


def drawn(peers=PEERS, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, "head": (3,)}
    return AdapterBank(
        {n: torch.randn(peers, *shape, generator=draws, dtype=torch.float64) for n, shape in shapes.items()}
    )


def gradients(*preferred):
    """Gradients that are large in the layer that each peer prefers."""

    def look(state, who):
        bank = state.bank.map(torch.ones_like)
        for peer, layer in enumerate(preferred):
            for p in LAYERS[layer]:
                bank.tensors[p.a][peer] *= 10
                bank.tensors[p.b][peer] *= 10
        return bank.rows(who.nonzero()[:, 0].tolist())

    return look


def training(state, who, chosen, seen=None, shift=1.0):
    """Training that moves what each peer has selected."""
    how = votes()
    if seen is not None:
        seen.append(chosen)
    bank = state.bank.map(torch.clone)
    for peer in who.nonzero()[:, 0].tolist():
        for name in NAMES - how.resting(chosen[peer].tolist()):
            bank.tensors[name][peer] += shift
    ones = who.long()
    return Trained(bank, state.optimiser, torch.where(who, 1.0, torch.nan).double(), ones, ones, ones)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["ring", "star", "complete", "random_pairs", "erdos_renyi:p=0.5"]),
    carried=st.sampled_from(["either", "both"]),
    round_=st.integers(0, 5),
    chosen=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=6, max_size=6),
)
def test_every_layers_matrix_is_symmetric_and_doubly_stochastic(name, carried, round_, chosen):
    matrix = mixing(build_topology(name, 6, 1), round_, 1, 0.2, 0.2)
    selected = np.array(chosen)
    by_layer = votes(carried=carried).by_layer(matrix, selected, range(6))
    assert [names for _, names in by_layer] == [{p.a, p.b} for (p,) in LAYERS.values()]
    for (own, _), of_layer in zip(by_layer, selected.T, strict=True):
        check_mixing(own)
        W, whole = own.dense(), matrix.dense()
        np.testing.assert_array_equal(W, W.T)
        np.testing.assert_allclose([W.sum(0), W.sum(1)], 1, atol=1e-12)
        for i, j in matrix.edges:
            wanted = (any if carried == "either" else all)([of_layer[i], of_layer[j]])
            assert W[i, j] == (whole[i, j] if wanted else 0)


@settings(max_examples=15, deadline=None)
@given(
    preferred=st.lists(st.sampled_from(list(LAYERS)), min_size=PEERS, max_size=PEERS),
    carried=st.sampled_from(["either", "both"]),
    out=st.sets(st.integers(0, PEERS - 1), max_size=2),
)
def test_a_round_keeps_the_mean_of_every_parameter_and_moves_what_was_selected(preferred, carried, out):
    links = [edge for edge in ring().edges.tolist() if not out & set(edge)]
    matrix, bank, how = graph(links, 1 / 3, out=out), drawn(), votes(carried=carried)
    after, _, report = voted_round(
        state_of(bank), partial(training, shift=0.0), gradients(*preferred), matrix, NAMES, how
    )
    for name, t in bank.tensors.items():
        torch.testing.assert_close(after.bank.tensors[name].mean(0), t.mean(0), rtol=0, atol=1e-12)
    assert report.chosen.sum(1).tolist() == [0 if peer in out else 1 for peer in range(PEERS)]


def test_peers_choose_by_the_mean_of_their_own_vote_and_their_neighbours():
    """On a line, a third for each neighbour: the one between two who prefer layer 4 follows them."""
    seen, how, line = [], votes(), graph([(0, 1), (1, 2), (3, 4)], 1 / 3)
    _, _, report = voted_round(
        state_of(drawn()), partial(training, seen=seen), gradients(4, 1, 4, 2, 2), line, NAMES, how
    )
    torch.testing.assert_close(report.votes[0], torch.tensor([1, 1, 10]) / 12)
    picked = [[how.numbers[i] for i in own.nonzero()[:, 0]] for own in report.chosen]
    assert picked == [[4], [4], [4], [2], [2]] and torch.equal(seen[0], report.chosen)


@pytest.mark.parametrize("carried", ["either", "both"])
def test_a_link_carries_and_counts_what_its_ends_have_selected(carried):
    bank, how, line = drawn(), votes(carried=carried), graph([(0, 1), (1, 2), (2, 3), (3, 4)], 1 / 3)
    after, report, voted = voted_round(
        state_of(bank), partial(training, shift=0.0), gradients(4, 4, 4, 2, 2), line, NAMES, how
    )
    assert [how.numbers[own.tolist().index(True)] for own in voted.chosen] == [4, 4, 4, 2, 2]
    name = "2.lora_B.weight"
    moved = [not torch.equal(after.bank.tensors[name][k], bank.tensors[name][k]) for k in range(PEERS)]
    assert moved == [False, False, carried == "either", True, True]
    links = {"either": 3 + 2, "both": 2 + 1}[carried]  # of layer 4, and of layer 2; nobody selected layer 1
    layer, head, told = 8 * (2 * 6 + 4 * 2), 8 * 3, 4 * 3 + 1
    assert report.bytes_sent == 2 * (links * layer + 4 * (head + told))


@pytest.mark.parametrize("how", [{"highest": 2, "lowest": 1}, {"highest": 9, "grad_eval": "random"}])
def test_with_every_layer_selected_it_is_plain_gossip_to_the_bit(how):
    plain, sent = peer_round(
        state_of(drawn()),
        lambda now, who: training(now, who, torch.ones(PEERS, 3, dtype=bool)),
        ring(),
        NAMES,
    )
    ours, report, voted = voted_round(state_of(drawn()), training, gradients(4), ring(), NAMES, votes(**how))
    assert all(torch.equal(ours.bank.tensors[name], t) for name, t in plain.bank.tensors.items())
    assert report.bytes_sent == sent.bytes_sent and voted.votes is None and voted.chosen.all()


def test_at_random_all_peers_take_the_same_layers_and_nobody_votes():
    how = votes(grad_eval="random")
    picked = []
    for round_ in range(8):
        begun = replace(state_of(drawn()), round=round_)
        _, report, voted = voted_round(begun, training, gradients(4), uniform(), NAMES, how)
        assert voted.votes is None and (voted.chosen == voted.chosen[0]).all()
        picked.append(voted.chosen[0].tolist().index(True))
    assert set(picked) == {0, 1, 2}
    assert report.bytes_sent == PEERS * (PEERS - 1) * 8 * (2 * 6 + 4 * 2 + 3)


def test_in_turn_all_peers_take_one_layer_after_another_and_nobody_votes():
    picked = []
    for round_ in range(3):
        begun = replace(state_of(drawn()), round=round_)
        _, _, report = voted_round(
            begun, training, gradients(4), uniform(), NAMES, votes(grad_eval="in_turn")
        )
        assert report.votes is None and (report.chosen == report.chosen[0]).all()
        picked.append(report.chosen[0].tolist().index(True))
    assert sorted(picked) == [0, 1, 2]


def test_layers_that_do_not_rest_train_all_and_links_carry_what_was_selected():
    how, seen = votes(rested=False), list[set[str]]()

    def everything(state, who, chosen):
        seen.extend(NAMES - how.resting(own) for own in chosen.tolist())
        return training(state, who, torch.ones_like(chosen))

    bank = drawn()
    after, report, _ = voted_round(state_of(bank), everything, gradients(*[4] * PEERS), ring(), NAMES, how)
    assert seen == [NAMES] * PEERS
    W = torch.from_numpy(ring().dense())
    for name, t in bank.tensors.items():
        mixed = name in {"4.lora_A.weight", "4.lora_B.weight", "head"}
        expected = torch.einsum("ij,j...->i...", W, t + 1) if mixed else t + 1
        torch.testing.assert_close(after.bank.tensors[name], expected)
    assert report.bytes_sent == 2 * PEERS * (8 * (2 * 6 + 4 * 2 + 3) + 4 * 3 + 1)


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 0.0])
def test_a_peer_whose_gradient_says_nothing_has_no_preference(spoil):
    def look(state, who):
        bank = gradients(4, 4, 4, 4, 4)(state, who)
        for t in bank.tensors.values():
            t[1] = spoil
        return bank

    _, _, report = voted_round(state_of(drawn()), training, look, ring(), NAMES, votes())
    torch.testing.assert_close(report.votes[1], torch.full((3,), 1 / 3))
    assert report.chosen[:, 2].all()


def test_with_a_frozen_a_its_gradient_is_none():
    row = drawn(1).row(0)
    frozen = {name: t for name, t in row.items() if "lora_A" in name}
    rest = {name: t for name, t in row.items() if name not in frozen}
    gradient = {name: torch.ones_like(t) for name, t in rest.items()}
    zeros = {name: torch.zeros_like(t) for name, t in frozen.items()}
    for kind in ("l1", "lora_l2", "lora_per_l1"):
        found = votes(grad_eval=kind, frozen=frozen).vote(rest, gradient)
        torch.testing.assert_close(found, votes(grad_eval=kind).vote(row, gradient | zeros))


# --- whole runs

TRAIN = [{"sentence": f"{('fine', 'dull')[i % 2]} {i}", "label": 1 - i % 2} for i in range(24)]
QUICK = "--num_clients 4 --name ring --lr 0.01 --batch_size 3 --local_steps 2 --lora_r 2 --dtype float32"
VOTES = "--method DFL-GPL --max_layer_num 1 --drop_peer 0.2 --drop_link 0.2"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of `fedloom dfl` on a tiny model of three layers."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert", num_hidden_layers=3)
    for part, content in (("train", TRAIN), ("validation", TRAIN[:4])):
        write_rows(folder / f"{part}.jsonl", content)
    inputs = f"--model_checkpoint {folder}/bert --data_dir {folder} --report_to none --save_every 2"

    def make(out_dir, name, more, rounds=4):
        line = (
            f"dfl {inputs} --eval_every 4 --out_dir {out_dir} --exp_name {name} --num_rounds {rounds} {QUICK}"
        )
        return [*line.split(), *more.split()]

    return make


@pytest.fixture(scope="module")
def voted(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert main(words(folder, "voted", VOTES)) == 0
    return folder / "voted"


def test_a_run_says_who_selected_what(voted):
    for row in rows(voted)[1:]:
        assert sum(row["layer_votes"]) == pytest.approx(1)
        for peer, own in enumerate(row["peer_selected_layers"]):
            assert len(own) == (0 if peer in row["peers_out"] else 1)


def test_what_no_peer_selected_is_as_it_was_and_its_moments_rest(voted):
    selected = {layer for row in rows(voted)[1:] for own in row["peer_selected_layers"] for layer in own}
    assert selected < {0, 1, 2}
    (resting, *_) = {0, 1, 2} - selected
    tensors = {name: t for name, t in state(voted).items() if f".layer.{resting}." in name}
    assert tensors and not any(t.any() for t in tensors.values())  # B begins at zero


@pytest.mark.parametrize("frozen_a", ["DFL-LoRA", "LoRA"])
def test_a_run_with_all_layers_is_one_without_votes(words, tmp_path, frozen_a, caplog):
    kind = f"--training_type {frozen_a} --drop_link 0.2"
    assert main(words(tmp_path, "plain", kind, rounds=2)) == 0
    assert main(words(tmp_path, "all", f"{kind} --layer_votes both --max_layer_num 3", rounds=2)) == 0
    assert "select all 3 layers" in caplog.text
    for key, t in state(tmp_path / "plain").items():
        assert torch.equal(state(tmp_path / "all")[key], t), key
    assert [row["bytes_up"] for row in rows(tmp_path / "all")[1:]] == [
        row["bytes_up"] for row in rows(tmp_path / "plain")[1:]
    ]


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("dfl", "--layer_votes either --max_layer_num 0", "layer_votes: either selects no layer"),
        ("dfl", "--layer_votes both --compress int8", "compress int8 is about all of them in every round"),
        ("dfl", "--method DFL-GPL --aggregator median", "leave aggregator out, or choose --layer_votes none"),
        ("dfl", "--method FlexLoRA --layer_votes both", "lora_aggregation flexlora is about all"),
        ("dfl", "--method K-GT --layer_votes both", "client_rule gradient_tracking is about all"),
        ("dfl", "--method QG-DSGDm --layer_votes both", "client_rule quasi_global is about all"),
        ("peer", "--method DFL-GPL --max_layer_num 0", "layer_votes: either selects no layer"),
    ],
)
def test_what_has_no_meaning_is_told_before_weights_are_read(command, flags, said, tmp_path, capsys):
    save_tiny_bert(tmp_path / "bert")
    capsys.readouterr()  # how far the saving is
    assert main([command, "--model_checkpoint", str(tmp_path / "bert"), *flags.split()]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1, message
