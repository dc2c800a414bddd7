"""The examples run as they stand, and what they claim holds."""

import runpy

import pytest
from places import ROOT

EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def named(name):
    """What an example defines."""
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_is_short_and_names_its_command(file):
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") < 100
    assert f"python examples/{file.name}\n" in source


def test_an_example_runs_as_it_says_and_fedavg_is_the_mean_by_hand_and_learns(capfd):
    example = runpy.run_path(str(EXAMPLES / "fedavg_by_hand.py"), run_name="__main__")
    said = capfd.readouterr()
    title, *rounds = said.out.splitlines()
    assert "loss" in title and len(rounds) == 8 and said.err == ""
    rounds = example["fedavg"]()
    assert rounds[-1]["loss"] < 0.6 * rounds[0]["loss"]
    for row in rounds:
        assert row["off"] < 1e-6 < 0.1 < row["moved"]


def test_gossip_keeps_the_mean_and_only_a_frozen_a_makes_it_exact():
    example = named("gossip_by_hand.py")
    lora, frozen = example["gossip"](freeze_a=False), example["gossip"](freeze_a=True)
    for rounds in (lora, frozen):
        assert rounds[-1]["loss"] < 0.8 * rounds[0]["loss"]
        assert all(row["mean moved"] < 1e-6 for row in rounds)
    assert all(row["inexact"] < 1e-6 for row in frozen)
    assert all(row["inexact"] > 1e-2 for row in lora)
    assert frozen[-1]["consensus"] < lora[-1]["consensus"]
