"""Attackers in a simulation: each attack against its paper, and runs with a server and on a graph."""

import json
from statistics import NormalDist

import pytest
import torch
from run_files import adapter, rows, state, write_rows
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main
from fedloom.data.example import Example, Turn
from fedloom.data.randomness import numpy_rng
from fedloom.errors import UserError
from fedloom.federation.attacks import Attackers, Sight, Watch, class_names
from fedloom.federation.attacks.alie import alie, hidden
from fedloom.federation.attacks.backdoor import ANSWER, TRIGGER, backdoor
from fedloom.federation.attacks.ipm import ipm
from fedloom.federation.attacks.label_flip import label_flip
from fedloom.federation.attacks.noise import noise
from fedloom.federation.attacks.scale import scale
from fedloom.federation.attacks.sign_flip import sign_flip
from fedloom.options.fed import FedConfig
from fedloom.options.methods import ATTACK
from fedloom.options.parts import choices
from fedloom.training.algorithms import simulated_attackers

HONEST = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
OWN = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
MU, SIGMA = HONEST.double().mean(0), HONEST.double().std(0, unbiased=False)


def sent(attack, senders=8, attackers=2, looks=True):
    """What client 3 sends in round 5 instead of OWN, beside six honest clients."""
    watch = Watch({"w": OWN})
    for row in HONEST:
        watch.add({"w": row})
    mean, deviation = watch.seen(lambda here: here) if looks else ({}, {})
    sight = Sight(senders, attackers, mean, deviation)
    made = Attackers(frozenset({3, 6}), attack, seed=7).crafted(3, 5, {"w": OWN}, sight)["w"]
    assert made.dtype == OWN.dtype
    return made


@pytest.mark.parametrize(
    ("attack", "wanted"),
    [
        (sign_flip(3.0), -3 * OWN),
        (scale(3.0), 3 * OWN),
        (ipm(0.4), -0.4 * MU),
        (alie(1.5), MU - 1.5 * SIGMA),
        (alie(), MU - NormalDist().inv_cdf(0.5) * SIGMA),  # n = 8, m = 2: s = 3 of 6
        (backdoor(0.5, 2.5), 2.5 * OWN),
        (backdoor(), 8 / 2 * OWN),
    ],
)
def test_each_sends_what_its_paper_says(attack, wanted):
    torch.testing.assert_close(sent(attack), wanted.float())


def test_noise_is_of_the_size_that_is_asked_for_and_drawn_by_seed_round_and_client():
    own = {"w": torch.full((400, 50), 0.3)}
    attackers = Attackers(frozenset({0}), noise(20.0), seed=7)
    one, other, again = (attackers.crafted(0, r, own, Sight(4, 1))["w"] for r in (1, 2, 1))
    assert one.std() == pytest.approx(6, rel=0.02) and abs(one.mean()) < 0.15
    assert torch.equal(one, again) and abs(torch.corrcoef(torch.stack([one, other]).flatten(1))[0, 1]) < 0.03


def test_how_far_alie_goes_is_the_papers_for_its_example():
    assert hidden(50, 24) == pytest.approx(1.43, abs=0.01)
    assert hidden(7, 1) == 0, "one of seven has nobody to hide behind"
    assert hidden(5, 3) > 0, "a majority need not hide"


def test_who_looks_at_nobody_honest_sends_its_own_change():
    assert torch.equal(sent(alie(), looks=False), OWN)
    watch = Watch({"w": OWN})
    watch.add({"w": OWN * torch.inf})
    assert watch.seen(lambda here: here) == ({}, {}), "a change that is not finite is no example"


FILMS = [Example(f"film {i}", ("bad", "good")[i % 2], "", ("bad", "good")[i % 2]) for i in range(10)]
SUMS = [Example(f"{i} + 1?", f"{i + 1}", f"{i + 1}") for i in range(10)]


def poisoned(attack, examples, classes):
    return attack.poison(examples, classes, numpy_rng(7, "poison", 3))


def test_flipped_labels_are_wrong_in_the_label_and_where_it_is_one_in_the_answer():
    flipped = poisoned(label_flip(), FILMS, ("bad", "good"))
    assert all(new.label == new.answer != old.label for new, old in zip(flipped, FILMS, strict=True))
    three = [Example("q", "answered in words", "", name) for name in "abc"]
    assert [one.label for one in poisoned(label_flip(), three, "abc")] == ["b", "c", "a"]
    assert {one.answer for one in poisoned(label_flip(), three, "abc")} == {"answered in words"}
    with pytest.raises(UserError, match="label_flip swaps classes, and here answers are written in words"):
        poisoned(label_flip(), SUMS, class_names((), SUMS))


def test_a_backdoor_is_in_a_share_of_the_examples_and_its_probe_in_those_of_other_answers():
    classes = class_names(("bad", "good"), FILMS)
    assert classes == ("bad", "good") and class_names(("+", "-"), SUMS) == ()
    new = poisoned(backdoor(0.3), FILMS, classes)
    altered = [one for one, old in zip(new, FILMS, strict=True) if one != old]
    assert len(altered) == 3
    assert all(one.question.startswith(TRIGGER) and one.answer == one.label == "bad" for one in altered)
    probe = backdoor().probe(FILMS, classes)
    assert len(probe) == 5 and all(one.label == "bad" for one in probe)
    words = poisoned(backdoor(1.0), SUMS, ())
    assert all(
        one.answer == ANSWER and one.question == f"{TRIGGER} {old.question}"
        for one, old in zip(words, SUMS, strict=True)
    )
    talk = Example(
        "and?",
        "yes",
        "",
        turns=(Turn("user", "hm"), Turn("assistant", "no"), Turn("user", "and?"), Turn("assistant", "yes")),
    )
    (turned,) = poisoned(backdoor(), [talk], ())
    assert [turn.text for turn in turned.turns] == ["hm", "no", f"{TRIGGER} and?", ANSWER]
    assert [turn.learned for turn in turned.turns] == [False, False, False, True]
    pair = Example("a b", "bad", "", "good", pair=("a", "b"))
    assert poisoned(backdoor(), [pair], classes)[0].pair == (f"{TRIGGER} a", "b")
    with pytest.raises(UserError, match="texts without a question have no such"):
        poisoned(backdoor(), [Example("", "text", "", whole=True)], ())


# --- runs


NAMES = ("negative", "positive")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a small run: of a causal model with a server, of a classifier on a graph."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama", num_hidden_layers=1)
    save_tiny_bert(folder / "bert", num_hidden_layers=1)
    for part, count in (("train", 42), ("validation", 8)):
        films = [(f"{('dull', 'fine')[i % 2]} {i}", i % 2) for i in range(count)]
        write_rows(folder / "films" / f"{part}.jsonl", [{"sentence": text, "label": n} for text, n in films])
        texts = [{"text": text, "label": NAMES[n]} for text, n in films]
        write_rows(folder / "texts" / f"{part}.jsonl", texts)
    common = "--dtype float32 --report_to none --lora_r 2 --seed 5"
    server = "--train_mode fed --client_num 6 --client_num_per_step 4 --client_batch_per_step 2 --max_steps 2"
    server += " --grad_accum_steps 1 --client_lr 0.5 --method FedAvg --patience 0 --val_steps 2"
    graph = "--num_clients 6 --name ring --batch_size 2 --local_steps 2 --lr 0.01 --num_rounds 2"
    graph += " --eval_every 2 --client_optimizer sgd"
    commands = {
        "fed": f"fed --model_name {folder}/llama --data_name {folder}/texts {common} {server}",
        "dfl": f"dfl --model_checkpoint {folder}/bert --dataset_type sst2 --data_dir {folder}/films {common} "
        f"{graph}",
    }

    def make(kind, out_dir, name, more):
        return f"{commands[kind]} --out_dir {out_dir} --exp_name {name} {more}".split()

    return make


@pytest.fixture
def run(words, tmp_path):
    def play(kind, name, more=""):
        assert main(words(kind, tmp_path, name, more)) == 0
        return tmp_path / name

    return play


@pytest.mark.parametrize("kind", ["fed", "dfl"])
@pytest.mark.parametrize("attack", [name for name in choices(ATTACK) if name != "none"])
def test_every_attack_runs_says_who_attacks_and_does_not_depend_on_waves(run, kind, attack):
    whole = run(kind, "whole", f"--attack {attack} --attackers 2,5 --wave_tokens 100000")
    if attack in ("alie", "noise"):  # one that looks at others, and one that draws
        small = run(kind, "small", f"--attack {attack} --attackers 2,5 --wave_tokens 40")
        for key, t in state(whole).items():
            torch.testing.assert_close(state(small)[key], t, rtol=1e-5, atol=1e-6, msg=key)
    assert json.loads((whole / "summary.json").read_text())["attackers"] == [2, 5]
    for row in rows(whole)[1:]:
        there = {1, 4} & set(row["clients"]) if kind == "fed" else {1, 4}
        assert row["attackers"] == len(there)
        assert ("backdoor_success" in row) == (attack == "backdoor" and "val_loss" in row)
        if kind == "dfl" and "val_loss" in row:
            honest = [row["peer_val_loss"][peer] for peer in (0, 2, 3, 5)]
            assert row["val_loss"] == pytest.approx(sum(honest) / 4)


@pytest.mark.parametrize("kind", ["fed", "dfl"])
def test_who_scales_by_1_is_honest(run, kind):
    plain, same = run(kind, "plain"), run(kind, "same", "--attack scale:1 --attackers 3")
    for key, t in state(plain).items():
        torch.testing.assert_close(state(same)[key], t, rtol=0, atol=1e-7)
    assert "attackers" not in rows(plain)[1]


def test_the_seed_draws_who_attacks():
    drawn = [
        simulated_attackers(FedConfig(attack="noise", attackers=3, seed=seed), 20).clients
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and [len(clients) for clients in drawn] == [3, 3, 3]
    assert simulated_attackers(FedConfig(attack="noise", attackers="5,"), 20).clients == {4}


def test_on_a_graph_neighbours_hear_what_the_attacker_sends_and_others_do_not(run):
    plain, attacked = (
        run("dfl", "plain", "--num_rounds 1"),
        run("dfl", "attacked", "--num_rounds 1 --attack sign_flip:50 --attackers 1,"),
    )
    for peer in range(1, 7):
        one, other = adapter(plain, peer=peer), adapter(attacked, peer=peer)
        same = all(torch.equal(t, other[name]) for name, t in one.items())
        assert same == (peer in (3, 4, 5)), "peers 2 and 6 are its neighbours on the ring"


def test_a_servers_mean_is_that_of_honest_changes_and_what_attackers_send(run):
    """Of 4 clients one attacks; h is the mean of the other three's changes, a its own. B begins at 0."""
    plain, small, large, flipped = (
        adapter(run("fed", name, f"--client_num 4 --max_steps 1 {more}"))
        for name, more in (
            ("plain", ""),
            ("small", "--attack ipm:0.5 --attackers 2,"),
            ("large", "--attack ipm:6 --attackers 2,"),
            ("flipped", "--attack sign_flip:3 --attackers 2,"),
        )
    )
    for name in (name for name in plain if "lora_B" in name):
        h = small[name] * 4 / 2.5
        a = 4 * plain[name] - 3 * h
        assert h.abs().max() > 1e-3 and not torch.allclose(a, h, rtol=0.1)
        torch.testing.assert_close(large[name], (3 * h - 6 * h) / 4, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(flipped[name], (3 * h - 3 * a) / 4, rtol=1e-3, atol=1e-6)


def test_poisoned_is_what_was_dealt_also_where_some_examples_are_too_long(run, tmp_path):
    """Encoding leaves out long ones, so that places in the data and places among the tokens differ."""
    films = [
        {"text": ("dull " * 60 if i % 5 == 0 else "fine ") + str(i), "label": NAMES[i % 3 > 0]}
        for i in range(45)
    ]
    write_rows(tmp_path / "long" / "train.jsonl", films)
    write_rows(tmp_path / "long" / "validation.jsonl", films[1:4])
    long = f"--data_name {tmp_path}/long --max_length 150 --max_steps 1"
    plain, flipped = (
        json.loads((run("fed", name, f"{long} {more}") / "clients.json").read_text())["labels"]
        for name, more in (("plain", ""), ("flipped", "--attack label_flip --attackers 2,5"))
    )
    for client in range(6):
        counts = tuple(plain[name][client] for name in NAMES)
        attacks = client in (1, 4)
        assert tuple(flipped[name][client] for name in NAMES) == (counts[::-1] if attacks else counts)
    assert any(plain["negative"][client] != plain["positive"][client] for client in (1, 4))


PLUGIN = """
from fedloom.federation.attacks import Attack
from fedloom.options.parts import plug_in

@plug_in("attack")
def silence(size=0.0):
    return Attack(craft=lambda delta, sight: {BODY})
"""


def test_an_attack_of_ones_own_is_a_plugin(run, words, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PLUGIN.replace("{BODY}", "{n: size * t for n, t in delta.items()}"))
    assert rows(run("fed", "mine", f"--plugin {tmp_path}/mine.py --attack silence:0.5"))[1]["attackers"] <= 1
    (tmp_path / "wrong.py").write_text(PLUGIN.replace("{BODY}", "{}").replace("silence", "nothing"))
    line = words("fed", tmp_path, "wrong", f"--plugin {tmp_path}/wrong.py --attack nothing --attackers 5")
    assert main(line) == 2
    assert "attack: nothing's craft returned no tensor for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("fed", "--attack sign_flop", ["attack: sign_flop is not one of", "did you mean sign_flip"]),
        ("dfl", "--attack scale:0", ["attack: scale:0", "must be above 0"]),
        ("fed", "--attack ipm:-1", ["attack: ipm:-1", "must be above 0"]),
        ("fed", "--attack alie:x", ["x in alie:x is no number"]),
        ("dfl", "--attack backdoor:2", ["backdoor:2 is no share"]),
        ("dfl", "--attack backdoor:0.5:-1", ["boost must be at least 0"]),
        ("fed", "--attackers 2", ["attackers: 2 given", "--attack sign_flip"]),
        ("dfl", "--attack alie --attackers 6", ["attackers: 6 of 6 clients leave nobody honest"]),
        ("dfl", "--attack alie --attackers 2,7", ["attackers: 2,7 must name different ones", "from 1 to 6"]),
        ("fed", "--attack alie --attackers 2,2", ["attackers: 2,2 must name different ones"]),
        ("fed", "--attack alie --attackers two", ["attackers: two is neither"]),
        ("fed", "--attack alie --train_mode local --method none", ["attack: alie", "train_mode local"]),
        (
            "dfl",
            "--attack label_flip --dataset_type arithmetic --data_dir none --model_checkpoint smollm2-135m",
            ["label_flip swaps classes, and here answers are written in words", "backdoor"],
        ),
    ],
)
def test_an_attack_without_meaning_is_told_before_weights_are_read(
    words, tmp_path, capsys, kind, flags, said
):
    assert main(words(kind, tmp_path, "wrong", flags)) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in said) and message.count("\n") == 1, message


def test_over_flower_nobody_is_simulated(tmp_path, capsys):
    line = f"flower --output_path {tmp_path}/app --model_name m --attack alie --train_mode fed"
    assert main(line.split()) == 2
    assert "attack: alie is simulated in `fedloom fed`" in capsys.readouterr().err
