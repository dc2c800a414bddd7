"""Neighbours that lie: about their round, that let others wait, tell two things, or send rows far away."""

import asyncio
import hashlib
import time
from importlib.util import find_spec

import pytest
import torch
from peer_network import VOICES, Link, Network, row_of
from run_files import rows
from tiny import save_tiny_llama

from fedloom.commands.audit import run_audit
from fedloom.errors import UserError
from fedloom.federation.neighbours import bounded_weight
from fedloom.options.peer import PeerConfig
from fedloom.runs.run_folder import write_run_config
from fedloom.runtimes.libp2p.lag import Lag
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema
from fedloom.runtimes.libp2p.statements import Signer
from fedloom.runtimes.libp2p.wire import LOST, Wire
from fedloom.training.peer import _expected, drive
from fedloom.training.setup_graph import build_one, intervals

PAIR = {1: [2], 2: [1]}
RING = {1: [2, 4], 2: [1, 3], 3: [2, 4], 4: [3, 1]}
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


class Liar:
    """A neighbour that says what it likes, with its own key."""

    def __init__(self, peers, number, at=1):
        near = {other: VOICES[other].identity for other in peers.graph[number]}
        wire = (number, len(near), peers.expected, Link(peers, number), peers.timeout, VOICES[number], near)
        self.peers, self.number, self.wire = peers, number, Wire(*wire, at=at)

    def statement(self, row, round_=1, before=""):
        digest = hashlib.sha256(self.peers.expected.schema.pack(row)).hexdigest()
        return VOICES[self.number].say(round_, digest, before)

    async def hello(self, peer):
        async with self.wire.dialled(peer) as stream:
            await self.wire.send(stream, "hello", 0)
            await self.wire.receive(stream, peer, ("hello",))

    async def offer(self, peer, row, said, decide=True, after=0.0):
        """Offers a row, and decides if wanted, so many seconds later; returns what the neighbour answers."""
        async with self.wire.dialled(peer) as stream:
            await self.wire.send(stream, "offer", said.round, row=row, said=said)
            answer = await self.wire.receive(stream, peer, ("ready", "passed"), said.round)
            if decide and answer.kind == "ready":
                await asyncio.sleep(after)
                await self.wire.send(stream, "decision", said.round, verdict="commit")
                await self.wire.receive(stream, peer, ("acknowledged",), said.round)
            return answer.kind

    def do(self, work):
        return self.peers.thread.run(work)


@pytest.mark.parametrize("graph", [PAIR, RING, COMPLETE])
def test_who_says_to_be_done_moves_nobody(network, graph):
    peers = network(graph, rounds=100)
    honest = {n: peers.node(n, meet=False) for n in graph if n != 1}
    peers.together(honest, lambda n, node: peers.thread.run(node.exchange.meet()) if n in graph[1] else None)
    liar = Liar(peers, 1, at=101)
    for peer in graph[1]:
        liar.do(liar.hello(peer))
        assert honest[peer].next_round(1) == 1


@pytest.mark.usefixtures("few_problems")
def test_one_hello_ends_nobodys_training(network, tmp_path):
    """A whole run of a peer whose only neighbour says, before the first round, that it has done them all."""
    config = PeerConfig(
        exp_name="honest",
        out_dir=str(tmp_path),
        model_checkpoint=str(save_tiny_llama(tmp_path / "model")),
        dataset_type="arithmetic",
        num_clients=2,
        client=2,
        num_rounds=4,
        local_steps=1,
        batch_size=2,
        dtype="float32",
        report_to="none",
        wave_tokens=600,
        eval_every=4,
    )
    peers = network(PAIR, timeout=2.0)
    config, parts = build_one(config)
    peers.expected = _expected(config, parts)
    node = peers.node(2, meet=False)
    liar = Liar(peers, 1, at=5)
    liar.do(liar.hello(2))
    folder = tmp_path / "2"
    write_run_config(folder, config, {}, "cpu")
    drive(parts, intervals(config), node, folder)
    metrics = rows(folder)
    assert [row["round"] for row in metrics] == [0, 1, 2, 3, 4]
    assert all(row["rounds_missed"] == 0 and row["train_loss"] > 0 for row in metrics[1:])


def test_who_was_left_behind_follows_most_of_those_that_are_there():
    believed = Lag(timeout=10.0, training=2.0).believed
    assert believed(5, claimed=9, voices=2) == 9
    assert believed(5, claimed=9, voices=1) == 5, "it has let nobody wait"
    assert Lag(10.0, lost=0.6, training=2.0).believed(5, claimed=9, voices=1) == 8
    assert Lag(10.0, lost=60.0, training=2.0).believed(5, claimed=9, voices=1) == 9
    assert believed(5, claimed=3, voices=3) == 5


def test_an_offer_that_is_repeated_and_never_decided_holds_nobody(network):
    peers = network(PAIR, timeout=0.6)
    node = peers.node(2, meet=False)
    liar, row = Liar(peers, 1), row_of(1)
    said = liar.statement(row)

    async def repeat():
        while True:
            try:
                await liar.offer(2, row, said, decide=False)
            except LOST:
                await asyncio.sleep(0.01)
            await asyncio.sleep(peers.timeout / 8)

    liar.do(liar.hello(2))
    repeating = asyncio.run_coroutine_threadsafe(repeat(), peers.thread._loop)
    try:
        began = time.monotonic()
        mix = peers.play({2: node}, 1)[2]
        assert time.monotonic() - began < 4 * peers.timeout, "twice, and some time for a slow machine"
        assert mix.in_doubt == [1]
    finally:
        repeating.cancel()


def test_who_offers_late_has_the_whole_time_from_then(network):
    peers = network(PAIR, timeout=1.0)
    node = peers.node(2, meet=False)
    slow, row = Liar(peers, 1), row_of(1)
    slow.do(slow.hello(2))

    async def late():
        await asyncio.sleep(0.6 * peers.timeout)
        await slow.offer(2, row, slow.statement(row), after=0.6 * peers.timeout)

    offering = asyncio.run_coroutine_threadsafe(late(), peers.thread._loop)
    assert peers.play({2: node}, 1)[2].neighbours == [1]
    offering.result()


def test_who_only_greets_is_set_aside_and_comes_back(network, caplog):
    peers = network({1: [2, 3], 2: [1, 3], 3: [1, 2]}, rounds=40, timeout=0.5)
    honest = {n: peers.node(n, meet=False) for n in (1, 2)}
    liar = Liar(peers, 3)
    for round_ in range(1, 9):
        liar.wire.at = round_
        for peer in (1, 2):
            liar.do(liar.hello(peer))
        assert peers.play(honest, round_)[1].neighbours == [2]
    # In rounds 1, 2, 3 and 6; next in 11.
    assert all(node.exchange.patience.in_vain[3] == 4 for node in honest.values())
    assert "peer 3 is not waited for in the next 2 rounds" in caplog.text
    honest[3] = peers.node(3)
    counted = [peers.play(honest, round_)[1].neighbours for round_ in range(9, 14)]
    assert [2, 3] in counted and counted[-1] == [2, 3]
    assert run_audit(peers.folders())


def test_many_streams_of_one_neighbour_are_refused(network):
    peers = network(PAIR, timeout=10.0)
    node = peers.node(2, meet=False)
    liar = Liar(peers, 1)

    async def many():
        streams = [await liar.wire.transport.dial(2) for _ in range(40)]
        ends = time.monotonic() + 10
        while node.counts.refused["busy"] < 24 and time.monotonic() < ends:
            await asyncio.sleep(0.01)
        for stream in streams:
            stream.close()

    liar.do(many())
    assert node.counts.refused["busy"] == 24


def test_who_tells_two_things_is_found_by_the_audit(network, capsys):
    peers = network(COMPLETE, timeout=5.0)
    honest = {n: peers.node(n, meet=False) for n in (2, 3, 4)}
    liar = Liar(peers, 1)
    for peer in honest:
        liar.do(liar.hello(peer))

    async def tell():
        for peer, row in ((2, row_of(1)), (3, row_of(1)), (4, row_of(9))):
            assert await liar.offer(peer, row, liar.statement(row)) == "ready"

    telling = asyncio.run_coroutine_threadsafe(tell(), peers.thread._loop)
    mixes = peers.play(honest, 1)
    telling.result()
    assert all(1 in mixed.neighbours for mixed in mixes.values()), "nobody can see it alone"
    folders = peers.folders()
    with pytest.raises(UserError, match="these are the peers 2, 3, 4 of 1 to 4"):
        run_audit(folders[1:])
    said = capsys.readouterr().out
    assert said.startswith("peer 1 told two things in round 1: ") and said.count("\n") == 1
    assert "(journals of 2, 3)" in said and "(journals of 4)" in said
    peers.node(1, meet=False)
    assert not run_audit(folders)
    assert "peer 1 told two things in round 1" in capsys.readouterr().out


def test_what_contradicts_what_was_said_before_is_refused_and_kept(network):
    peers = network(PAIR)
    node = peers.node(2, meet=False)
    liar = Liar(peers, 1)
    liar.do(liar.hello(2))
    row, other = row_of(1), row_of(9)
    first = liar.statement(row)

    async def both():
        kinds = [await liar.offer(2, row, first, decide=False)]
        for _ in range(3):
            kinds.append(await liar.offer(2, other, liar.statement(other), decide=False))
        return kinds

    telling = asyncio.run_coroutine_threadsafe(both(), peers.thread._loop)
    peers.play({2: node}, 1)
    assert telling.result() == ["ready", "passed", "passed", "passed"]
    assert node.counts.refused["two_rows"] == 3
    journal = (peers.folder / "2" / "exchange" / "journal.jsonl").read_text()
    assert journal.count('"event": "heard"') == 2, "two are proof enough"
    # In round 2 it goes on from something that it has not said.
    liar.wire.at = 2
    liar.do(liar.hello(2))
    bad = liar.statement(row, 2, before="0" * 64)
    telling = asyncio.run_coroutine_threadsafe(liar.offer(2, row, bad), peers.thread._loop)
    assert peers.play({2: node}, 2)[2].neighbours == []
    assert telling.result() == "passed" and node.counts.refused["chain"] == 1


def test_a_row_that_its_sender_has_not_signed_is_refused(network):
    peers = network(PAIR, timeout=5.0)
    node = peers.node(2, meet=False)
    liar, row = Liar(peers, 1), row_of(1)
    good = liar.statement(row)
    digest, stranger = good.row, Signer(VOICES[3].private, "run", 1)
    elsewhere = Signer(VOICES[1].private, "another run", 1)
    for said in (stranger.say(1, digest, ""), elsewhere.say(1, digest, ""), liar.statement(row, before="x")):
        if said.before:
            said = type(said)(1, digest, "", said.signature, said.key)
        with pytest.raises(MessageRefused):
            liar.do(liar.offer(2, row, said))
    assert node.counts.refused == {"signature": 3}


def test_the_chain_goes_on_after_a_restart(network):
    peers = network(PAIR)
    nodes = peers.nodes()
    peers.play(nodes, 1)
    peers.cuts = lambda header: header["kind"] == "offer"
    peers.play(nodes, 2)
    said = dict(nodes[1].journal.said)
    peers.kill(1, nodes[1])
    peers.cuts = lambda header: False
    nodes[1] = peers.revive(1)
    peers.play({1: nodes[1]}, 2)
    peers.play(nodes, 3)
    after = nodes[1].journal.said
    assert list(after) == [1, 2, 3] and {r: after[r] for r in (1, 2)} == said
    assert after[3].before == after[2].mark("run", 1) and after[1].before == ""
    assert run_audit(peers.folders())
    # A peer whose store was changed behind its back would tell two things: it says so instead.
    node = nodes[1]
    node.store.save_trained(3, row_of(7), {}, 0.0)
    with pytest.raises(UserError, match="has told its neighbours another row than it has"):
        peers.play({1: node}, 3)


@pytest.mark.parametrize("late", [False, True])
def test_a_row_far_away_moves_its_neighbours_by_the_bound_and_the_sum_stays(network, late, capsys):
    peers = network(PAIR, most=0.5)
    for number, scale in ((1, 1.0), (2, 1e18)):
        peers.rows[number] = {name: t * scale for name, t in row_of(number).items()}
    before, nodes = peers.rows[1], peers.nodes()
    if late:
        peers.cuts = lambda header: header["kind"] == "decision"
    mixes = peers.play(nodes, 1)
    if late:
        peers.cuts = lambda header: False
        mixes = {**mixes, 2: peers.play_until_late(nodes, 2, first=2)[2]}
    moved = torch.cat([(peers.rows[1][name] - before[name]).flatten() for name in before])
    if not late:
        assert (mixes[1].bounded, mixes[2].bounded) == ([2], [1])
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.5, rel=1e-5)
    mine, other = mixes[1].differences[0], mixes[2].differences[0]
    assert all(torch.equal(mine[name], -other[name]) for name in mine)
    assert run_audit(peers.folders()), capsys.readouterr().out


def test_a_bound_lowers_a_weight_at_both_ends_to_the_bit():
    for size in (1, 1000, 40_000):
        one, two = row_of(1, size), row_of(2, size)
        far = {name: t / t.abs().max() * 3.4e38 for name, t in two.items()}
        for other in (two, far):
            weight = bounded_weight(one, other, 0.25, 0.1)
            assert 0 < weight < 0.25 and weight == bounded_weight(other, one, 0.25, 0.1)
        assert bounded_weight(one, two, 0.25, 0.0) == bounded_weight(one, two, 0.25, 10.0) == 0.25
    assert Schema.of(one).flat_sizes == {"float32": 80_003}


@pytest.mark.skipif(find_spec("hivemind") is None, reason="hivemind is not installed (fedloom[p2p])")
def test_a_voice_is_the_identity_of_the_key_file(tmp_path):
    from fedloom.runtimes.libp2p.identity import make_identity

    identity = make_identity(tmp_path / "peer.key")
    signer = Signer.of(tmp_path / "peer.key", "run", 3)
    assert signer.identity == identity
    said = signer.say(4, "0" * 64, "")
    assert said == signer.say(4, "0" * 64, "") and said.holds("run", 3, identity)
    assert not said.holds("run", 2, identity) and not said.holds("run", 3, VOICES[1].identity)
