"""Peers that vote on layers over a network: what `fedloom dfl` comes to in one process, byte by byte."""

from dataclasses import replace

import pytest
import torch
from peer_network import Network
from run_files import adapter, rows, write_rows
from tiny import save_tiny_bert

from fedloom.commands.cli import main
from fedloom.federation.update import payload_like
from fedloom.options.peer import PeerConfig
from fedloom.runtimes.libp2p.messages import Expected, choice, chosen_of
from fedloom.runtimes.libp2p.polls import vote, vote_of
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema
from fedloom.training.graph_parts import start
from fedloom.training.peer_rounds import play_round, restore
from fedloom.training.peer_votes import select
from fedloom.training.setup_graph import build_one

LINE = {1: [2], 2: [1, 3], 3: [2]}
ROUNDS = 3
TRAIN = [{"sentence": f"{('fine', 'dull')[i % 2]} {i}", "label": 1 - i % 2} for i in range(24)]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What all peers have, also those of one process."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert", num_hidden_layers=3)
    for part, content in (("train", TRAIN), ("validation", TRAIN[:4])):
        write_rows(folder / f"{part}.jsonl", content)
    training = {"lr": 0.01, "batch_size": 3, "local_steps": 2, "lora_r": 2, "num_rounds": ROUNDS}
    inputs = {"model_checkpoint": str(folder / "bert"), "data_dir": str(folder), "num_clients": 3}
    return (
        inputs | training | {"dtype": "float32", "wave_tokens": 600, "method": "DFL-GPL", "max_layer_num": 1}
    )


class Voters:
    """Peers in one process, each in a thread, that train and vote."""

    def __init__(self, folder, **options):
        made = {
            number: build_one(PeerConfig(client=number, max_move=0.0, aggregator="mean", **options))[1]
            for number in LINE
        }
        self.parts, self.now = made, {number: start(parts) for number, parts in made.items()}
        self.peers = Network(folder, LINE, rounds=ROUNDS, timeout=20.0)
        schema = Schema.of(payload_like(made[1].algorithm, 0, made[1].sent, {}))
        self.peers.expected = Expected("run", schema, ROUNDS, len(LINE), True, made[1].votes.names)
        self.nodes = self.peers.nodes()

    def mean_stays(self, round_):
        """Whether mixing left the mean over peers what training had made of it."""
        trained = [node.store.load_trained(round_)[0] for node in self.nodes.values()]
        for name in self.now[1].peers.bank.tensors:
            before = sum(row[f"adapter.{name}"][0] for row in trained)
            after = sum(now.peers.bank.row(0)[name] for now in self.now.values())
            torch.testing.assert_close(after, before, rtol=0, atol=1e-6)

    def killed_before_it_has_trained(self, number, node):
        """A peer's round 3, in which peer 2 is killed twice; its row of metrics."""
        parts, now = self.parts[number], self.now[number]

        def revived():
            self.peers.kill(2, node)
            self.nodes[2] = self.peers.revive(2)
            return self.nodes[2]

        if number == 2:
            node.begin(3)
            node.poll("vote", 3, vote([1, 0, 0]))
            node = revived()
            node.begin(3)
            chosen = select(parts, node, 3, replace(now.peers, round=2), now.drawn).chosen[0].tolist()
            node = revived()
            assert node.choose(3, [not on for on in chosen]) == chosen
            now, _ = play_round(parts, node, ROUNDS, restore(parts, node))
        self.now[number], row = play_round(parts, node, ROUNDS, now)
        return row

    def play(self, rounds, nodes=None):
        """Some rounds of some peers; their rows of metrics."""

        def one(number, node):
            told = []
            for _ in range(rounds):
                self.now[number], row = play_round(self.parts[number], node, ROUNDS, self.now[number])
                told.append(row)
            return told

        return self.peers.together(nodes or self.nodes, one)


@pytest.mark.parametrize(
    "more",
    [
        {"layer_votes": "both", "mix_head": False},
        {"grad_eval": "random"},
        {"grad_eval": "in_turn", "rest_layers": False},
    ],
)
def test_peers_that_vote_are_what_they_are_in_one_process(options, tmp_path, more):
    words = [
        f"--{name}={str(value).lower() if value in (True, False) else value}"
        for name, value in (options | more).items()
    ]
    where = f"--name line --report_to none --out_dir {tmp_path} --exp_name one"
    assert main(["dfl", *words, *where.split()]) == 0
    voters = Voters(tmp_path / "peers", **options, **more)
    try:
        told = voters.play(ROUNDS)
    finally:
        voters.peers.close()
    one = rows(tmp_path / "one")[1:]
    for number in LINE:
        ours = voters.now[number].peers.bank.row(0)
        for name, t in adapter(tmp_path / "one", ROUNDS, number).items():
            if name in ours:
                torch.testing.assert_close(ours[name], t, rtol=0, atol=1e-6)
        for mine, all_ in zip(told[number], one, strict=True):
            assert mine["selected_layers"] == all_["peer_selected_layers"][number - 1]
            assert mine["refused"] == {} and mine["neighbors"] == LINE[number]
    sent = [row["bytes_up"] for row in one]
    assert [sum(told[n][r]["bytes_up"] for n in LINE) for r in range(ROUNDS)] == sent
    # A neighbour's next vote may come before a peer has ended its round.
    assert sum(row["bytes_down"] for n in LINE for row in told[n]) == sum(sent)


def test_whoever_is_not_heard_has_no_vote_and_a_killed_peer_sends_the_same_layers_again(options, tmp_path):
    voters = Voters(tmp_path, **options)
    peers = voters.peers
    try:
        voters.play(1)
        # Peer 1 is there, and its votes get lost: it and peer 2 send each other nothing in this round.
        peers.cuts = lambda header: header["kind"] == "vote" and header["sender"] == 1
        told = voters.play(1)
        assert [told[number][0]["neighbors"] for number in LINE] == [[], [3], [2]]
        voters.mean_stays(2)
        peers.cuts = lambda header: False
        # Peer 2 is killed; it ends its round again, without voting.
        before = voters.now[2].peers.bank.row(0)
        peers.kill(2, voters.nodes[2])
        voters.nodes[2] = peers.revive(2)
        voters.now[2] = restore(voters.parts[2], voters.nodes[2])
        (again,) = voters.play(1, {2: voters.nodes[2]})[2]
        assert again["selected_layers"] == told[2][0]["selected_layers"] and again["neighbors"] == [3]
        for name, t in before.items():
            assert torch.equal(voters.now[2].peers.bank.row(0)[name], t)
        # Killed after its vote, and after its choice, it is told all again, and its own choice stands.
        told = peers.together(voters.nodes, voters.killed_before_it_has_trained)
        assert {number: row["neighbors"] for number, row in told.items()} == LINE
        voters.mean_stays(3)
        assert not any(row["refused"] for row in told.values())
    finally:
        peers.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zz",
        vote([0.5]),
        vote([0.5, 0.6]),
        vote([1.5, -0.5]),
        vote([float("nan"), 1.0]),
        vote([0, 1]) + " ",
    ],
)
def test_what_is_no_vote_is_refused(text):
    with pytest.raises(MessageRefused):
        vote_of(text, 2)


def test_votes_and_choices_come_back():
    assert vote_of(vote([0.25, 0.75]), 2).tolist() == [0.25, 0.75]
    for chosen in ([True], [False] * 8, [True, False] * 5):
        assert chosen_of(choice(chosen), len(chosen)) == chosen
    for text in ("", "f", "ff ", "80", "é", "ffff"):
        with pytest.raises(MessageRefused):
            chosen_of(text, 11)
