"""Which differences between settings are more than noise."""

import math

import pytest

from fedloom.report.comparison import Sample, as_csv, as_latex, compared, sample_of, within
from fedloom.runs.record import RunRecord


def sample(label, *numbers, failed=()):
    return Sample(label, dict(enumerate(numbers, 1)), {"bytes": {1: 2e6}}, dict.fromkeys(failed, "why"))


def test_differences_are_taken_seed_by_seed():
    """Seeds move all settings alike: what is far smaller than their spread is told apart all the same."""
    plain = sample("plain", 0.50, 0.60, 0.70, 0.80)
    better = sample("better", 0.52, 0.621, 0.72, 0.819)
    noisy = sample("noisy", 0.60, 0.50, 0.80, 0.72)
    first, second, third = compared([plain, better, noisy])
    assert (first.verdict, second.verdict, third.verdict) == ("", "higher", "not told apart")
    assert second.difference == pytest.approx(0.02) and second.low < 0.02 < second.high
    assert (first.mean, first.sd) == (pytest.approx(0.65), pytest.approx(0.12909944))
    # Student's t of the differences 0.02, 0.021, 0.02, 0.019: mean 0.02, standard error 0.000408, 3 degrees.
    assert second.high - second.low == pytest.approx(2 * 3.182446 * 0.00040825, rel=1e-4)


def test_among_many_settings_the_smallest_p_must_pass_the_strictest_test():
    """The smallest of five p-values counts five times (Holm)."""
    plain = sample("plain", 0.5, 0.5, 0.5)
    lower = sample("lower", 0.48, 0.482, 0.478)
    alone = compared([plain, lower])[1]
    among = compared([plain, lower, *(sample(f"none {n}", 0.51, 0.49, 0.5) for n in range(4))])[1]
    assert among.p == pytest.approx(5 * alone.p) and alone.verdict == "lower"


def test_seeds_with_one_difference_are_no_proof():
    """Accuracies of a small test set often differ by the same amount: the test divides by their spread."""
    plain = sample("plain", 0.50, 0.60)
    for shift in (0.0, 0.01):
        one = compared([plain, sample("shifted", 0.50 + shift, 0.60 + shift)])[1]
        assert one.verdict == "the same in every seed" and math.isnan(one.p)


def test_a_last_number_that_is_none_is_not_an_earlier_one(tmp_path):
    rows = [{"round": n, "val_accuracy": accuracy} for n, accuracy in enumerate((0.1, 0.9, None))]
    run = RunRecord(tmp_path, {"seed": 1}, "cpu", {}, rows, {}, {}, {})
    assert sample_of("ruined", "val_accuracy", [run], {}).metric == {}


@pytest.mark.parametrize(
    ("budget", "accuracy", "sent"),
    [
        ({}, 0.8, 10e6),
        ({"rounds": 3}, 0.6, 7.5e6),
        ({"megabytes": 5.1}, 0.6, 5e6),
        ({"megabytes": 4.9}, 0.5, 2.5e6),
        ({"megabytes_up": 2.0}, 0.6, 5e6),
        ({"seconds": 40, "rounds": 1}, 0.5, 2.5e6),
        ({"seconds": 39.9}, 0.6, 7.5e6),
        ({"megabytes": 5}, 0.6, 5e6),
    ],
)
def test_a_budget_compares_runs_where_they_had_spent_as_much(tmp_path, budget, accuracy, sent):
    """Four rounds of 10 seconds, each of 1 MB up and 1.5 MB down; round 3 was not validated."""
    round_ = {
        "bytes_up": 1_000_000,
        "bytes_down": 1_500_000,
        "seconds": 10.0,
        "consensus_error_relative": 0.2,
    }
    found = {0: 0.5, 1: 0.5, 2: 0.6, 4: 0.8}
    rows = [
        {"round": n, **(round_ if n else {}), **({"val_accuracy": found[n]} if n in found else {})}
        for n in range(5)
    ]
    run = within(RunRecord(tmp_path, {"seed": 1}, "cpu", {}, rows, {}, {}, {}), budget)
    sample = sample_of("one", "val_accuracy", [run], {})
    assert sample.metric == {1: accuracy} and sample.columns["bytes"] == {1: sent}
    assert sample.columns["consensus_error_relative"] == {1: 0.2}


def test_rounds_that_spend_a_budget_to_the_last_byte_are_within_it(tmp_path):
    """0.1 + 0.2 is more than 0.3 in floating point, and three rounds of 0.1 are not."""
    round_ = {"bytes_up": 50_000, "bytes_down": 50_000, "seconds": 0.1}
    run = RunRecord(tmp_path, {}, "cpu", {}, [{"round": n, **round_} for n in range(1, 11)], {}, {}, {})
    for rounds in range(1, 11):
        budgets = {"megabytes": 0.1 * rounds}, {"megabytes_up": 0.05 * rounds}, {"seconds": rounds / 10}
        assert [len(within(run, budget).rows) for budget in budgets] == [rounds] * 3


def test_one_seed_and_failed_seeds_have_no_interval():
    first, one, none = compared([sample("a", 0.5, 0.6), sample("b", 0.7), sample("c", failed=[1, 2])])
    assert one.difference == pytest.approx(0.2) and math.isnan(one.p) and one.verdict == ""
    assert math.isnan(none.mean)
    lines = as_csv([first, one, none], "val_accuracy").splitlines()
    assert lines[0].startswith("setting,n,val_accuracy_mean") and lines[3].endswith("1 2")
    assert "b & 1 & $0.7000$ & $+0.2000$ & 2.0" in as_latex([first, one, none], "val_accuracy")
