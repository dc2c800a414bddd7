"""Methods from outside, each as the one file that a user writes, and what of such a file is a mistake."""

import math

import pytest
import torch
from graph_rounds import PEERS, SHAPES, going, random_bank, ring, state_of
from on_ranks import on_ranks
from run_files import adapter, assert_close, lose_checkpoints, rows, state, states_kept, write_rows
from tiny import save_tiny_bert, save_tiny_llama
from updates import update_by

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.federation.aggregate import aggregate
from fedloom.federation.aggregators import NO_STATISTICS, Changes, NeedsServer, StatefulAggregator
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import AGGREGATOR, Algorithm, with_prefix
from fedloom.federation.codecs import Codec, Feedback, feedback
from fedloom.federation.codecs.topk import topk
from fedloom.federation.peers import PeerState, mix, peer_round
from fedloom.federation.plugged import made
from fedloom.federation.server import federated_round, initial_state
from fedloom.model.bank import AdapterBank
from fedloom.options import parts
from fedloom.options.methods import PARTS
from fedloom.runtimes.libp2p.mixes import Agreed, MixingRule, aggregate_of_neighbours

MINE = '''
import torch
from fedloom.client.rules.none import none
from fedloom.federation.aggregators import StatefulAggregator
from fedloom.federation.codecs import Codec, Feedback, flattened, scattered
from fedloom.model.bank import AdapterBank
from fedloom.options.parts import plug_in


@plug_in("aggregator")
def reputation():
    """Whose changes have pointed the same way over all rounds counts less, as in FoolsGold."""

    def init(adapter, senders):
        return {name: t.new_zeros(senders, *t.shape) for name, t in adapter.items()}

    def combine(changes, state):
        who = torch.tensor(changes.senders)
        state = {name: t.clone() for name, t in state.items()}
        for name, t in changes.deltas.tensors.items():
            state[name][who] += t
        flat = torch.cat([state[name][who].flatten(1) for name in changes.before], 1).double().cpu()
        flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
        alike = (flat @ flat.T).fill_diagonal_(-1).amax(1)
        return changes.deltas.mean(2 - alike), state

    return StatefulAggregator(init, combine)


@plug_in("client_rule")
def careful(rho=0.05, last=4.0):
    """FedSAM's gradient, clipped at the median of the client's last norms, as AutoClip does."""

    def memory(adapter):
        like = next(iter(adapter.values()))
        return {"norms": like.new_full((int(last),), 1e6), "steps": like.new_zeros(())}

    def gradient(gradient_at, bank, start, memory, received):
        g = gradient_at(bank)
        norms = g.norms().clamp(min=1e-12)
        return gradient_at(bank.map(lambda w, d: w + rho * d / norms.view(-1, *[1] * (d.ndim - 1)), g))

    def observe(gradients, bank, start, memory, received):
        place = (memory["steps"] % last).long()[:, None]
        norms = memory["norms"].scatter(1, place, gradients.norms()[:, None])
        return {"norms": norms, "steps": memory["steps"] + 1}

    def correct(gradients, bank, start, memory, received):
        most = memory["norms"].median(1).values
        scale = (most / gradients.norms().clamp(min=1e-12)).clamp(max=1)
        return gradients.map(lambda g: g * scale.view(-1, *[1] * (g.ndim - 1)))

    return none()._replace(memory=memory, gradient=gradient, observe=observe, correct=correct)


@plug_in("client_rule")
def server_momentum(beta=0.5, *, client_lr):
    """FedCM: the last round's way is added to every gradient; it and its squares stay with the server."""

    def kept(adapter):
        return {f"{what}.{name}": torch.zeros_like(t) for name, t in adapter.items() for what in "mv"}

    def hand_out(kept, names):
        return {key: t for key, t in kept.items() if key[2:] in names}

    def correct(gradients, bank, start, memory, received):
        return AdapterBank(
            {
                name: g + beta * received[f"m.{name}"] / (1 + received[f"v.{name}"].sqrt())
                for name, g in gradients.tensors.items()
            }
        )

    def amend(change, kept, share):
        way = {name: -t / client_lr for name, t in change.items()}
        new = {f"m.{name}": t for name, t in way.items()} | {f"v.{name}": t * t for name, t in way.items()}
        return change, kept | new

    return none()._replace(kept=kept, hand_out=hand_out, correct=correct, amend=amend)


@plug_in("compress")
def differences(share=0.25):
    """EF21's client: the largest numbers of what the server's estimate of the change lacks."""

    def encode(row, seed):
        flat = flattened(row)
        places = flat.abs().topk(max(1, int(share * len(flat)))).indices
        return {"places": places.int(), "values": flat[places]}

    def decode(payload, like):
        return scattered(payload["places"].long(), payload["values"], like)

    return Codec(encode, decode, True, Feedback(lambda t, e: t - e, lambda t, e, arrived: e + arrived))


@plug_in("client_rule")
def divides():
    """Makes numbers that are not finite."""
    return none()._replace(correct=lambda g, bank, *others: g.map(lambda g, w: g / (0 * w), bank))


@plug_in("aggregator")
def by_loss():
    """Clients of a high loss count for more."""
    return lambda changes: changes.deltas.mean(changes.weights * changes.statistics["loss"])
'''


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama")
    save_tiny_bert(folder / "bert")
    for part, count in (("train", 32), ("validation", 4), ("test", 2)):
        asked = [{"question": f"{part[0]} and {i}?", "answer": f"{i * 7 % 11}"} for i in range(count)]
        write_rows(folder / "asked" / f"{part}.jsonl", asked)
        read = [{"sentence": f"{('fine', 'dull')[i % 2]} {i}", "label": 1 - i % 2} for i in range(count)]
        write_rows(folder / "read" / f"{part}.jsonl", read)
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.fixture
def words(inputs, tmp_path):
    """The words of a short run with parts of the file."""
    both = "--lora_r 2 --dtype float32 --report_to none --wave_tokens 600 --max_length 64"
    of = {
        "fed": f"fed --model_name {inputs}/llama --data_dir {inputs}/asked --data_name qa --train_mode fed "
        "--fed_alg FedAVG --client_num 4 --client_num_per_step 3 --client_batch_per_step 3 "
        "--grad_accum_steps 1 --client_lr 0.05 --lr 0.05 --val_steps 1 --max_steps 3",
        "dfl": f"dfl --model_checkpoint {inputs}/bert --data_dir {inputs}/read --num_clients 4 --name ring "
        "--lr 0.01 --batch_size 3 --local_steps 2 --client_optimizer sgd --training_type LoRA --num_rounds 3 "
        "--save_every 1 --eval_every 3 --drop_peer 0.2",
    }

    def make(command, name, more):
        line = f"{of[command]} {both} --plugin {inputs}/mine.py --out_dir {tmp_path} --exp_name {name} {more}"
        return line.split()

    return make


@pytest.mark.parametrize(
    ("command", "chosen"),
    [
        ("fed", "--aggregator reputation --client_rule server_momentum --compress differences"),
        ("fed", "--aggregator by_loss --client_rule careful --lora_r 1,2"),
        ("dfl", "--aggregator reputation --client_rule careful"),
    ],
)
def test_methods_of_one_file_run_and_go_on_as_if_never_stopped(words, tmp_path, command, chosen):
    with states_kept():
        assert main(words(command, "whole", chosen)) == 0
    last, told = state(tmp_path / "whole"), rows(tmp_path / "whole")
    assert all(math.isfinite(row["train_loss"]) for row in told[1:])
    lose_checkpoints(tmp_path / "whole", after=1)
    assert main(words(command, "whole", f"{chosen} --resume")) == 0
    for key, t in last.items():
        assert torch.equal(state(tmp_path / "whole")[key], t), key
    # Neighbours in a pass change nothing.
    assert main(words(command, "apart", f"{chosen} --wave_tokens 100")) == 0
    for key, t in last.items():
        torch.testing.assert_close(state(tmp_path / "apart")[key], t, rtol=1e-3, atol=1e-3)


@pytest.mark.deploy
def test_methods_of_one_file_on_two_ranks_are_those_of_one_process(words, tmp_path):
    chosen = "--aggregator reputation --client_rule careful"
    todo = [(words(command, command, chosen), None) for command in ("fed", "dfl")]
    found, said = on_ranks(tmp_path, todo)
    assert all(one["status"] == 0 for rank in found for one in rank), said
    for command in ("fed", "dfl"):
        assert main(words(command, f"{command}-alone", chosen)) == 0
        alone, ranks = state(tmp_path / f"{command}-alone"), state(tmp_path / command)
        for key, t in alone.items():
            torch.testing.assert_close(ranks[key], t, rtol=1e-4, atol=1e-5)


def test_over_flower_a_file_of_ones_own_does_what_it_does_in_one_process(
    words, inputs, tmp_path, monkeypatch
):
    """What the server hands out, what a client sends and what it remembers are those that the file names."""
    pytest.importorskip("flwr")
    from flower_hand import Hand, nodes, serve, written

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    chosen = "--aggregator reputation --client_rule server_momentum --compress differences"
    assert main(words("fed", "alone", chosen)) == 0
    _, *line = words("fed", "flower", chosen)
    at = line.index("--plugin")
    del line[at : at + 2]  # an app has what its machine has installed
    app = written(tmp_path / "app", *line)
    serve(Hand(app, nodes(4)), app)
    assert_close(adapter(tmp_path / "flower"), adapter(tmp_path / "alone"), 1e-5)
    assert [row["clients_left_out"] for row in rows(tmp_path / "flower")[1:]] == [[]] * 3


def test_what_neighbours_do_not_send_is_told_before_weights_are_read(words, tmp_path, capsys):
    assert main(words("dfl", "wrong", "--aggregator by_loss")) == 2
    assert "statistics['loss'], and peers on a graph send their rows alone" in capsys.readouterr().err
    assert not (tmp_path / "wrong" / "config.yaml").exists()
    with pytest.raises(NeedsServer):
        NO_STATISTICS["steps"]


@pytest.mark.parametrize("command", ["fed", "dfl"])
def test_a_rule_that_makes_numbers_of_no_use_is_named(words, tmp_path, capsys, caplog, command):
    assert main(words(command, "wrong", "--client_rule divides")) == 2
    assert "not finite, or too large (client_rule divides was on and may be why;" in capsys.readouterr().err
    assert "left out" in caplog.text or "goes on from where it was" in caplog.text
    own_making = "client_rule: divides's correct made a number that is not finite of finite ones"
    assert caplog.text.count(own_making) == 1


# --- an aggregator that remembers


def counting(changes, state):
    """The mean; remembers how often each sender has come, and the last round."""
    seen = state["seen"].clone()
    seen[torch.tensor(changes.senders)] += 1
    return weighted_mean(changes), {"seen": seen, "round": torch.tensor(changes.round)}


REMEMBERS = StatefulAggregator(
    lambda adapter, senders: {"seen": torch.zeros(senders), "round": torch.tensor(-1)}, counting
)


def test_one_that_does_not_use_what_it_remembers_is_the_mean():
    adapter = {"w": torch.randn(3, dtype=torch.float64)}

    def train(round_, clients, trained, used, rule):
        for k in clients:
            yield update_by(k, {"w": torch.full((3,), 0.1 * k + round_, dtype=torch.float64)}, examples=k + 1)

    plain, ours = Algorithm(0.1), Algorithm(0.1, aggregator=REMEMBERS)
    was, now = initial_state(adapter, plain, 4), initial_state(adapter, ours, 4)
    for who in ([0, 1, 3], [1, 3]):
        was, _ = federated_round(was, who, train, plain)
        now, _ = federated_round(now, who, train, ours)
    torch.testing.assert_close(now.adapter["w"], was.adapter["w"], rtol=1e-10, atol=1e-12)
    assert now.aggregator["seen"].tolist() == [1, 2, 0, 2] and now.aggregator["round"] == 1


def test_what_a_rule_sends_beside_changes_has_no_place_in_one_that_remembers():
    sent = {"w": torch.ones(3)} | with_prefix("sent by the rule: ", {"w": torch.ones(3)})
    with pytest.raises(UserError, match="client_rule: what clients send beside their change would be combin"):
        aggregate({"w": torch.zeros(3)}, [update_by(0, sent)], Algorithm(0.1, aggregator=REMEMBERS))


def peers_that_remember(bank):
    memory = {"seen": torch.zeros(PEERS, PEERS), "round": torch.full((PEERS,), -1)}
    return PeerState(0, bank, {}, memory=with_prefix(AGGREGATOR, memory))


def test_on_a_graph_each_peer_remembers_its_own_neighbours():
    now = peers_that_remember(random_bank())
    algorithm, mixed = Algorithm(1.0, aggregator=REMEMBERS), random_bank()
    for _ in range(2):
        now, _ = peer_round(now, going([0.0] * PEERS), ring(), set(SHAPES), algorithm)
        mixed = mix(mixed, ring().rows(range(PEERS)), set(SHAPES))
    for name, t in mixed.tensors.items():
        torch.testing.assert_close(now.bank.tensors[name], t, rtol=1e-10, atol=1e-12)
    wanted = 2 * (ring().rows(range(PEERS)).to_dense() > 0)
    assert torch.equal(now.memory[f"{AGGREGATOR}seen"], wanted.float())
    assert now.memory[f"{AGGREGATOR}round"].tolist() == [1] * PEERS


def test_real_peers_combine_as_those_of_one_process_do(tmp_path):
    bank = random_bank()
    algorithm = Algorithm(1.0, aggregator=REMEMBERS)
    after, _ = peer_round(
        peers_that_remember(bank), going([0.0] * PEERS), ring(), set(SHAPES), algorithm, seed=3
    )
    rows_of = {peer: bank.row(peer) for peer in range(PEERS)}
    edges = [Agreed(peer + 1, rows_of[2], rows_of[peer], 1 / 3, True) for peer in (1, 3)]
    known = {"seen": torch.zeros(PEERS), "round": torch.tensor(-1)}
    mixed = aggregate_of_neighbours(edges, 1, rows_of[2], 3, MixingRule(aggregator=REMEMBERS, seed=3), known)
    (change,) = mixed.differences
    for name, t in change.items():
        torch.testing.assert_close(rows_of[2][name] + t, after.bank.tensors[name][2], rtol=0, atol=1e-12)
    assert torch.equal(mixed.remembered["seen"], after.memory[f"{AGGREGATOR}seen"][2])
    assert mixed.remembered["seen"].tolist() == [0, 1, 1, 1, 0]


def test_what_a_peer_draws_is_its_own_in_every_round():
    seen = []

    def look(changes):
        seen.append((changes.round, changes.seed, tuple(changes.senders)))
        return weighted_mean(changes)

    now = state_of(random_bank())
    for _ in range(2):
        now, _ = peer_round(now, going([0.0] * PEERS), ring(), set(SHAPES), Algorithm(1.0, aggregator=look))
    assert len({seed for _, seed, _ in seen}) == 2 * PEERS
    assert next(senders for round_, _, senders in seen if round_ == 1) == (0, 1, 4)


# --- a codec that remembers in its own way


def test_differences_to_what_was_sent_come_to_the_change_itself():
    """EF21: of a change that stays the same the estimate of both ends becomes that change."""
    change = {"w": torch.randn(8, dtype=torch.float64)}
    ef21 = topk(0.25)._replace(memory=Feedback(lambda t, e: t - e, lambda t, e, arrived: e + arrived))
    known, residual = torch.zeros(8, dtype=torch.float64), {}
    for round_ in range(4):
        payload, residual = feedback(ef21, change, residual, round_)
        known = known + ef21.decode(payload, change)["w"]
        assert torch.equal(residual["w"], known)
    torch.testing.assert_close(known, change["w"], rtol=0, atol=1e-6)


def test_a_codec_without_memory_keeps_nothing():
    half = Codec(lambda row, seed: {"w": row["w"].half()}, lambda p, like: {"w": p["w"].to(like["w"])}, True)
    assert feedback(half, {"w": torch.full((2,), 0.1)}, {}, 0)[1]["w"].abs().max() > 0
    assert feedback(half._replace(memory=None), {"w": torch.full((2,), 0.1)}, {}, 0)[1] == {}


# --- mistakes

ROW = {"w": torch.zeros(2, 3)}
CHANGES = Changes(ROW, AdapterBank({"w": torch.ones(2, 2, 3)}), torch.full((2,), 0.5, dtype=torch.float64))
BANK = AdapterBank({"w": torch.ones(2, 2, 3)})


def weighed(changes):
    return {n: (changes.weights.view(-1, 1, 1) * t).sum(0) for n, t in changes.deltas.tensors.items()}


@pytest.mark.parametrize(
    ("option", "made_of", "call", "said"),
    [
        ("aggregator", lambda: weighed, lambda f: f(CHANGES), "float64 on cpu for w, which is torch.float32"),
        ("aggregator", lambda: lambda c: {"w": c.before["w"] / 0}, lambda f: f(CHANGES), "not finite for w"),
        (
            "aggregator",
            lambda: StatefulAggregator(lambda a, n: {}, lambda c, s: weighted_mean(c)),
            lambda f: f.combine(CHANGES, {}),
            "combine returned .* not 2 results",
        ),
        (
            "aggregator",
            lambda: StatefulAggregator(
                lambda a, n: {}, lambda c, s: (weighted_mean(c), {"k": torch.ones(1)})
            ),
            lambda f: f.combine(CHANGES, {}),
            "returned a tensor for k, which it was not given",
        ),
        (
            "client_rule",
            lambda: rule(observe=lambda *given: {"x": torch.ones(2)}),
            lambda f: f.observe(BANK, BANK, BANK, {}, {}),
            "observe returned a tensor for x, which it was not given",
        ),
        (
            "client_rule",
            lambda: rule(finish=lambda s, b, k, m, r: ({}, {"w": b.tensors["w"][0, 0]})),
            lambda f: f.finish(BANK, BANK, torch.ones(2), {}, {}),
            "must have a row for each of 2 clients",
        ),
        (
            "client_rule",
            lambda: rule(absorb=lambda kept, sent, share: {"w": sent["w"] / 0}),
            lambda f: f.absorb(ROW, ROW, 1.0),
            "absorb returned a number that is not finite for w",
        ),
        (
            "client_rule",
            lambda: rule(own_model=rule(correct=lambda *given: None)),
            lambda f: f.own_model.correct(BANK),
            "own_model's correct returned None",
        ),
        (
            "compress",
            lambda: Codec(lambda row, seed: row, lambda p, like: p, True, Feedback(lambda t, e: t[0], max)),
            lambda f: f.memory.wanted(torch.ones(2), torch.ones(2)),
            "memory's wanted returned a tensor of the shape",
        ),
    ],
)
def test_a_mistake_of_a_plugged_part_is_told(monkeypatch, option, made_of, call, said):
    monkeypatch.setattr(parts, "_plugged", {(option, "wrong"): made_of})
    part = next(part for part in PARTS if part.option == option)
    with pytest.raises(UserError, match=rf"{option}: wrong.*{said}.*mend the plugin"):
        call(made(part, "wrong", {}))


def rule(**functions):
    from fedloom.client.rules.none import none

    return none()._replace(**functions)
