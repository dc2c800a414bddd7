"""What two ends of an edge come to, whatever is lost between them and whoever dies."""

import math
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from peer_network import Network, flaky

from fedloom.commands.audit import run_audit
from fedloom.errors import UserError
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.aggregators.trimmed_mean import trimmed_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.choco import Estimates
from fedloom.federation.codecs.int8 import int8
from fedloom.federation.codecs.topk import topk
from fedloom.federation.lora_aggregations.fedex import fedex
from fedloom.federation.matrix import RoundMixing, metropolis
from fedloom.federation.peers import PeerState, Trained, mix, peer_round
from fedloom.model.bank import AdapterBank
from fedloom.runtimes.libp2p.compressed import Compression
from fedloom.runtimes.libp2p.messages import Expected
from fedloom.runtimes.libp2p.schema import Schema

PAIR = {1: [2], 2: [1]}
LINE = {1: [2], 2: [1, 3], 3: [2]}
COMPLETE = {i: [j for j in range(1, 5) if j != i] for i in range(1, 5)}


@pytest.fixture
def network(tmp_path):
    made = []

    def make(graph, **options):
        made.append(Network(tmp_path, graph, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def kind(*kinds):
    return lambda header: header["kind"] in kinds


def test_without_faults_a_round_is_the_product_with_the_mixing_matrix(network):
    peers = network(LINE, timeout=5.0)
    edges = np.array([(0, 1), (1, 2)])
    matrix = RoundMixing(edges, metropolis(edges, 3), np.ones(3, dtype=bool))
    bank = AdapterBank.stack([peers.rows[number] for number in LINE])
    nodes = peers.nodes()
    for round_ in (1, 2):
        bank = mix(bank, matrix.rows(range(3)), ["a", "b"])
        peers.play(nodes, round_)
    for k, number in enumerate(LINE):
        for name, t in bank.row(k).items():
            torch.testing.assert_close(peers.rows[number][name], t, rtol=0, atol=1e-6)
    assert run_audit(peers.folders())


def test_who_never_hears_the_decision_mixes_late_and_the_sum_stays(network):
    peers = network(PAIR)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = kind("decision")
    mixes = peers.play(nodes, 1)
    assert mixes[1].neighbours == [2] and mixes[2].in_doubt == [1]
    assert not torch.allclose(peers.total(), before, atol=1e-3), "one end has mixed, the other not yet"
    peers.cuts = lambda header: False
    mixes = peers.play_until_late(nodes, 2, first=2)
    assert [(late["round"], late["peer"]) for late in mixes[2].late] == [(1, 1)]
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


def test_who_decides_and_dies_before_it_says_so_stands_by_it(network, capsys):
    peers = network(PAIR)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = kind("decision")
    peers.play(nodes, 1)
    peers.kill(1, nodes[1])
    peers.cuts = lambda header: False
    assert not run_audit(peers.folders())
    said = capsys.readouterr().out
    assert "peer 1 gave peer 2 the weight 0.5, which gave it 0" in said
    assert "peer 2 has not heard what peer 1 decided in round 1" in said
    nodes[1] = peers.revive(1)
    assert nodes[1].journal.decisions == {(1, 2): True}
    assert peers.play({1: nodes[1]}, 1)[1].neighbours == [2]
    peers.play(nodes, 2)
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


def test_who_dies_before_it_decided_decides_out(network):
    peers = network(PAIR)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = kind("ready")
    # Peer 1 dies in the middle: it has offered, nobody has answered.
    mixes = {}
    peers.together(
        nodes,
        lambda number, node: (
            (
                node.begin(1),
                node.keep_trained(1, peers.rows[1], {}, 0.0),
                time.sleep(0.2),
                peers.kill(1, node),
            )
            if number == 1
            else mixes.update(peers.play({2: node}, 1))
        ),
    )
    assert mixes[2].neighbours == []
    peers.cuts = lambda header: False
    nodes[1] = peers.revive(1)
    assert nodes[1].journal.decisions[1, 2] is False
    assert peers.play({1: nodes[1]}, 1)[1].neighbours == []
    assert [mixed.neighbours for mixed in peers.play(nodes, 2).values()] == [[2], [1]]
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


def test_who_is_ready_and_dies_mixes_when_it_is_back(network):
    peers = network(PAIR)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = kind("decision")
    peers.play(nodes, 1)
    peers.kill(2, nodes[2])
    peers.rows[2] = None  # what it had is on its disk
    peers.cuts = lambda header: False
    nodes[2] = peers.revive(2)
    assert peers.play({2: nodes[2]}, 1)[2].neighbours == [1]
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


def test_a_dead_neighbour_costs_one_timeout_and_is_waited_for_again_when_it_is_back(network):
    peers = network(LINE, timeout=1.0)
    before, nodes = peers.total(), peers.nodes()
    peers.play(nodes, 1)
    peers.kill(3, nodes.pop(3))
    seconds = []
    for round_ in (2, 3):
        began = time.monotonic()
        assert peers.play(nodes, round_)[2].neighbours == [1]
        seconds.append(time.monotonic() - began)
    assert seconds[0] >= peers.timeout > seconds[1]
    nodes[3] = peers.revive(3)
    assert nodes[3].next_round(2) == 3
    assert peers.play(nodes, 4)[2].neighbours == [1, 3]
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_lost_every_matrix_is_doubly_stochastic_in_the_end(network, seed):
    peers = network(COMPLETE, rounds=4, timeout=0.25)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = flaky(0.35, seed)
    mixes = [peers.play(nodes, round_) for round_ in range(1, 5)]
    peers.cuts, peers.timeout = lambda header: False, 5
    peers.finish(nodes)
    torch.testing.assert_close(peers.total(), before, rtol=0, atol=1e-5)
    assert run_audit(peers.folders())
    everybody = [mixed.neighbours for round_ in mixes for mixed in round_.values()]
    assert any(len(heard) < 3 for heard in everybody) and any(everybody), "faults, but not only"


@pytest.mark.parametrize("number", [math.inf, 3e38, -1e19])
def test_messages_that_are_refused_are_counted_and_the_round_goes_on(network, caplog, number):
    """A row that is finite and would ruin everybody who averages with it is refused as well."""
    peers = network(LINE, timeout=5.0)
    nodes = peers.nodes()
    bad = peers.rows[3]
    peers.rows[3] = {name: t * 0 + number for name, t in bad.items()}
    mixes = peers.play(nodes, 1)
    assert mixes[2].neighbours == [1] and mixes[3].neighbours == []
    assert nodes[2].counts.refused == {"not_finite": 1}
    peers.rows[3] = bad
    assert peers.play(nodes, 2)[2].neighbours == [1, 3]
    refused = [record for record in caplog.records if "refused" in record.message]
    assert len(refused) == 1 and "peer 3" in refused[0].message


def test_an_offer_of_a_round_that_is_over_is_refused(network):
    peers = network(PAIR, timeout=5.0)
    nodes = peers.nodes()
    peers.play(nodes, 1)
    nodes[2].begin(2)
    wire = nodes[1].exchange.wire

    async def replay():
        async with wire.dialled(2) as stream:
            await wire.send(stream, "offer", 1, row=peers.rows[1], said=nodes[1].journal.said[1])
            return await wire.receive(stream, 2, ("passed",), 1)

    for _ in range(2):
        assert peers.thread.run(replay()).at == 2
    assert nodes[2].counts.refused == {"old_round": 2}
    assert list(nodes[2].journal.decisions) == [(1, 1)]


def test_rows_and_messages_are_counted_within_five_percent_of_each_other(network):
    peers = network(PAIR, timeout=5.0)
    row = {f"layer.{i}.lora_B.weight": torch.zeros(576, 4) for i in range(60)}
    peers.rows = dict.fromkeys(PAIR, row)
    peers.expected = Expected("run", Schema.of(row), 4, 2)
    nodes = peers.nodes()
    peers.play(nodes, 1)
    for node in nodes.values():
        told = node.counts.since_last()
        assert told["bytes_up"] == told["bytes_down"] == 60 * 576 * 4 * 4
        assert told["bytes_up"] < told["message_bytes_up"] < 1.05 * told["bytes_up"]
        assert told["bytes_down"] < told["message_bytes_down"] < 1.05 * told["bytes_down"]
        assert node.counts.since_last()["bytes_up"] == 0


def test_the_audit_tells_what_does_not_hold_and_what_is_no_run(network, capsys, tmp_path):
    peers = network(LINE, timeout=5.0)
    nodes = peers.nodes()
    peers.play(nodes, 1)
    assert run_audit(peers.folders())
    nodes[3].journal.write("mixed", round=1, row={"2": 0.4}, own=0.6, late=[], in_doubt=[], missed=0)
    assert not run_audit(peers.folders())
    assert "the mean of all peers was not preserved in rounds 1" in capsys.readouterr().out
    for folders, words in (
        ([], "none given"),
        (peers.folders()[:2], "peers 1, 2 of 1 to 3"),
        ([str(tmp_path)], "no exchange/journal.jsonl"),
    ):
        with pytest.raises(UserError, match=words):
            run_audit(folders)
    nodes[1].journal.write("peer", client=1, clients=3, neighbors=[2], run="another")
    with pytest.raises(UserError, match="not of one run"):
        run_audit(peers.folders())


def test_any_aggregator_combines_the_rows_that_both_ends_agreed_on(network, capsys):
    peers = network(COMPLETE, timeout=5.0, aggregator=median(), name="median")
    rows, nodes = AdapterBank.stack([peers.rows[number] for number in COMPLETE]), peers.nodes()
    peers.play(nodes, 1)
    for name, t in rows.tensors.items():
        ordered = t.sort(0).values
        for number in COMPLETE:
            torch.testing.assert_close(peers.rows[number][name], (ordered[1] + ordered[2]) / 2)
    assert run_audit(peers.folders())
    assert "median does not keep the mean" in capsys.readouterr().out


def test_each_peers_residual_is_sent_and_mixed_as_in_one_process(network):
    """FedEx-LoRA, which is exact with a cap that leaves nothing out."""
    aggregator = fedex(aggregator=weighted_mean, residual_rank=5).among_peers
    peers = network(LINE, timeout=5.0, aggregator=aggregator, name="fedex")
    shapes = {
        "m.lora_A.weight": (2, 6),
        "m.lora_B.weight": (5, 2),
        "m.lora_up": (5, 5),
        "m.lora_down": (5, 6),
    }
    drawn = torch.Generator().manual_seed(0)
    bank = AdapterBank({name: torch.randn(3, *shape, generator=drawn) for name, shape in shapes.items()})
    peers.rows = {number: bank.row(k) for k, number in enumerate(LINE)}
    peers.expected = Expected("run", Schema.of(bank.row(0)), 4, 3)
    nodes, before = peers.nodes(), whole(bank)
    for round_ in (1, 2):
        peers.play(nodes, round_)
    edges = np.array([(0, 1), (1, 2)])
    W = RoundMixing(edges, metropolis(edges, 3), np.ones(3, dtype=bool)).rows(range(3)).to(before)
    mixed = whole(AdapterBank.stack([peers.rows[number] for number in LINE]))
    torch.testing.assert_close(mixed, torch.einsum("ij,jod->iod", W @ W, before), rtol=1e-5, atol=1e-5)
    assert run_audit(peers.folders())


def whole(bank):
    """What each peer adds to the base."""
    A, B, P, Q = (bank.tensors[f"m.lora_{end}"] for end in ("A.weight", "B.weight", "up", "down"))
    return B @ A + P @ Q


def test_with_another_aggregator_an_edge_in_doubt_is_left_out_and_nothing_is_owed(network, capsys):
    peers = network(PAIR, aggregator=median(), name="median")
    before, nodes = dict(peers.rows), peers.nodes()
    peers.cuts = kind("decision")
    mixes = peers.play(nodes, 1)
    assert mixes[1].neighbours == [2] and mixes[2].in_doubt == [1]
    assert all(torch.equal(peers.rows[2][name], t) for name, t in before[2].items())
    assert run_audit(peers.folders()), "peer 2 has agreed, and did not know yet"
    peers.cuts = lambda header: False
    for round_ in (2, 3, 4):  # what is in doubt is asked beside the rounds: its answer may miss one
        mixes = peers.play(nodes, round_)
        assert mixes[2].late == []
        if mixes[2].neighbours:
            break
    peers.finish(nodes)
    assert mixes[2].neighbours == [1]
    assert run_audit(peers.folders())
    nodes[2].journal.write(
        "mixed", round=round_, aggregator="median", row={}, own=1.0, late=[], in_doubt=[], missed=0
    )
    capsys.readouterr()
    assert not run_audit(peers.folders())
    assert "peer 1 took in peer 2's row, which did not take in that of peer 1" in capsys.readouterr().out
    nodes[2].journal.write("mixed", round=round_, row={}, own=1.0, late=[], in_doubt=[], missed=0)
    with pytest.raises(UserError, match="combined by mean and by median"):
        run_audit(peers.folders())


def test_a_peer_that_was_killed_takes_in_the_same_rows_again(network):
    peers = network(PAIR, timeout=5.0, aggregator=trimmed_mean(0.0), name="trimmed_mean")
    nodes = peers.nodes()
    trained = dict(peers.rows)
    peers.play(nodes, 1)
    once = peers.rows[2]
    peers.kill(2, nodes[2])
    nodes[2] = peers.revive(2)
    peers.play({2: nodes[2]}, 1)
    for name, t in once.items():
        assert torch.equal(peers.rows[2][name], t)
        torch.testing.assert_close(t, (trained[1][name] + trained[2][name]) / 2)
    assert run_audit(peers.folders())


def test_a_row_far_away_moves_a_peer_no_further_than_the_bound(network):
    peers = network(PAIR, timeout=5.0, most=0.5, aggregator=trimmed_mean(0.0), name="trimmed_mean")
    peers.rows[1] = {name: t + 1e4 for name, t in peers.rows[1].items()}
    before, nodes = peers.rows[2], peers.nodes()
    mixes = peers.play(nodes, 1)
    assert mixes[1].bounded == [2] and mixes[2].bounded == [1]
    moved = torch.cat([(peers.rows[2][name] - t).flatten() for name, t in before.items()])
    assert 0 < moved.square().mean().sqrt() <= 0.5


def test_the_mixing_step_lowers_every_weight_at_both_ends(network):
    peers = network(PAIR, timeout=5.0, step=0.1)
    before, (first, second), nodes = peers.total(), (peers.rows[1], peers.rows[2]), peers.nodes()
    assert peers.play(nodes, 1)[1].row == {2: 0.05}
    for name, t in first.items():
        torch.testing.assert_close(peers.rows[1][name], t + 0.05 * (second[name] - t))
    torch.testing.assert_close(peers.total(), before)
    assert run_audit(peers.folders())


FIRST = {"b": torch.zeros(6, 2), "a": torch.zeros(3)}
INT8, TOPK = (Compression(codec, FIRST, seed=3) for codec in (int8(), topk(0.2)))


def held(node, peer):
    known = node.rule.compression.known(node.store, peer)
    return known.basis, known.own, known.other


def same_estimates(nodes, i, j):
    """Whether both ends of an edge know the same of each other, to the bit."""
    (here, own, other), (there, own_there, other_there) = held(nodes[i], j), held(nodes[j], i)
    return here == there and all(
        torch.equal(own[n], other_there[n]) and torch.equal(other[n], own_there[n]) for n in FIRST
    )


@pytest.mark.parametrize(("compression", "step"), [(INT8, 1.0), (TOPK, 0.3)])
def test_compressed_rows_are_those_of_one_process_and_peers_come_to_agree(network, compression, step):
    peers = network(LINE, timeout=5.0, rounds=12, compression=compression, step=step)
    before, nodes = peers.total(), peers.nodes()
    edges = np.array([(0, 1), (1, 2)])
    matrix = RoundMixing(edges, step * metropolis(edges, 3), np.ones(3, dtype=bool))
    bank = AdapterBank.stack([peers.rows[number] for number in LINE])
    now = PeerState(0, bank, {}, Estimates(FIRST))
    for round_ in range(1, 13):
        peers.play(nodes, round_)
        now, _ = peer_round(
            now, stay, matrix, set(FIRST), Algorithm(1.0, codec=compression.codec), seed=compression.seed
        )
        if round_ == 3:
            for k, number in enumerate(LINE):
                for name, t in now.bank.row(k).items():
                    torch.testing.assert_close(peers.rows[number][name], t, rtol=0, atol=1e-5)
    assert same_estimates(nodes, 1, 2) and same_estimates(nodes, 2, 3)
    torch.testing.assert_close(peers.total(), before, rtol=0, atol=1e-5)
    rows = AdapterBank.stack([peers.rows[number] for number in LINE])
    apart, at_first = (
        sum(float((t - t.mean(0)).norm()) for t in some.tensors.values()) for some in (rows, bank)
    )
    assert apart < (0.1 if compression is INT8 else 0.8) * at_first
    assert run_audit(peers.folders())


def stay(state, who):
    """Training that changes nothing."""
    counts = who.long()
    return Trained(state.bank, state.optimiser, torch.ones(len(who)).double(), counts, counts, counts)


def test_compressed_an_edge_in_doubt_waits_for_the_decision_and_the_sum_stays(network):
    peers = network(PAIR, compression=INT8)
    before, nodes = peers.total(), peers.nodes()
    peers.play(nodes, 1)
    peers.cuts = kind("decision")
    assert peers.play(nodes, 2)[2].in_doubt == [1]
    assert held(nodes[1], 2)[0] == 2 and held(nodes[2], 1)[0] == 1
    # What peer 1 sends now is a difference from what peer 2 does not know to count.
    mixes = peers.play(nodes, 3)
    assert mixes[1].neighbours == [] and mixes[2].neighbours == [] and mixes[2].in_doubt == []
    peers.cuts = lambda header: False
    peers.kill(2, nodes[2])
    nodes[2] = peers.revive(2)
    peers.play({2: nodes[2]}, 3)
    assert peers.play(nodes, 4)[1].neighbours == [2]
    peers.finish(nodes)
    torch.testing.assert_close(peers.total(), before)
    assert same_estimates(nodes, 1, 2) and run_audit(peers.folders())


@pytest.mark.parametrize("who", [1, 2])
def test_compressed_a_killed_peer_sends_and_knows_the_same_again(network, who):
    peers = network(PAIR, compression=INT8)
    before, nodes = peers.total(), peers.nodes()
    peers.play(nodes, 1)
    peers.cuts = kind("decision")
    peers.play(nodes, 2)
    peers.kill(who, nodes[who])
    peers.cuts = lambda header: False
    nodes[who] = peers.revive(who)
    peers.play({who: nodes[who]}, 2)
    for round_ in (3, 4):
        peers.play(nodes, round_)
    peers.finish(nodes)
    torch.testing.assert_close(peers.total(), before)
    assert same_estimates(nodes, 1, 2) and run_audit(peers.folders())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("compression", [INT8, TOPK])
def test_compressed_whatever_is_lost_the_sum_and_the_estimates_hold_in_the_end(network, compression, seed):
    peers = network(COMPLETE, rounds=5, timeout=0.25, compression=compression, step=0.5)
    before, nodes = peers.total(), peers.nodes()
    peers.cuts = flaky(0.35, seed)
    mixes = [peers.play(nodes, round_) for round_ in range(1, 6)]
    peers.cuts, peers.timeout = lambda header: False, 5
    peers.finish(nodes)
    torch.testing.assert_close(peers.total(), before, rtol=0, atol=1e-5)
    assert run_audit(peers.folders())
    assert all(same_estimates(nodes, i, j) for i, j in combinations(COMPLETE, 2))
    everybody = [mixed.neighbours for round_ in mixes for mixed in round_.values()]
    assert any(len(heard) < 3 for heard in everybody) and any(everybody), "faults, but not only"


def test_compressed_a_payload_that_is_of_no_use_is_refused(network):
    peers = network(PAIR, timeout=5.0, compression=TOPK)
    before, nodes = peers.total(), peers.nodes()
    encoded = TOPK.codec.encode
    outside = {"places": torch.full((3,), 99, dtype=torch.int32)}
    spoilt = TOPK.codec._replace(encode=lambda row, seed: encoded(row, seed) | outside)
    nodes[1] = replace(nodes[1], rule=replace(peers.rule, compression=replace(TOPK, codec=spoilt)))
    mixes = peers.play(nodes, 1)
    assert mixes[1].neighbours == [] and mixes[2].neighbours == []
    assert nodes[2].counts.refused == {"format": 1}
    torch.testing.assert_close(peers.total(), before)


def test_every_pair_of_the_complete_graph_agrees(network):
    peers = network(COMPLETE, timeout=5.0)
    nodes = peers.nodes()
    peers.play(nodes, 1)
    for i, j in combinations(COMPLETE, 2):
        assert nodes[i].journal.decisions[1, j] and nodes[j].journal.decisions[1, i]
        assert nodes[i].journal.weights[1, j] == nodes[j].journal.weights[1, i] == 0.25
