"""Settings compared over the same seeds: means, spreads, and which differences are noise.

A seed decides a run's draws, the same in every setting, so that differences are taken seed by seed: the
paired t-test (Student, 1908). Every setting is compared with the first one; of several p-values the smallest
must pass the strictest test (Holm, 1979), so that among many settings one does not stand out by chance.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from fedloom.runs.record import RunRecord

LEVEL = 0.05
"""Below this p, after Holm, a difference is called higher or lower."""


@dataclass(frozen=True)
class Sample:
    """One setting's numbers, by seed.

    Attributes:
        label: The setting in words.
        metric: What is compared.
        columns: Other numbers: ``{column: {seed: number}}``.
        failed: Why a seed has no numbers.
    """

    label: str
    metric: Mapping[int, float]
    columns: Mapping[str, Mapping[int, float]]
    failed: Mapping[int, str]


@dataclass(frozen=True)
class Compared:
    """A setting compared with the first one.

    Attributes:
        sample: The setting's numbers.
        mean, sd: Over its seeds; ``sd`` is nan for one seed.
        difference: Mean over the seeds of both, of how much more it has than the first; nan for the first.
        low, high: The 95 % interval of this difference alone; nan for fewer than two seeds.
        p: Of the paired t-test, after Holm, which allows for the number of settings, as the interval does
            not; nan likewise, and where all seeds have the same difference, of which the test says nothing.
    """

    sample: Sample
    mean: float
    sd: float
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """In words."""
        if math.isnan(self.p):
            return "" if math.isnan(self.low) else "the same in every seed"
        if self.p >= LEVEL:
            return "not told apart"
        return "higher" if self.difference > 0 else "lower"


def within(run: RunRecord, budget: Mapping[str, float]) -> RunRecord:
    """A run as it was when it had last spent no more than a budget, of `options.compare.BUDGETS`."""
    up = down = 0
    seconds, rows = 0.0, []
    for row in run.rows:
        up, down = up + (row.get("bytes_up") or 0), down + (row.get("bytes_down") or 0)
        seconds += row.get("seconds") or 0
        spent = {
            "rounds": row["round"],
            "megabytes": (up + down) / 1e6,
            "megabytes_up": up / 1e6,
            "seconds": seconds,
        }
        if any(spent[name] > limit * (1 + 1e-9) for name, limit in budget.items()):  # 0.1 + 0.2 is 0.3 here
            break
        rows.append(row)
    return replace(run, rows=rows)


def spent_on(budget: Mapping[str, float]) -> str:
    """A budget in words."""
    limits = " and ".join(f"{limit:g} {name.replace('_', ' ')}" for name, limit in budget.items())
    return f"Every run is compared at its last validation within {limits}."


def sample_of(label: str, metric: str, runs: Sequence[RunRecord], failed: Mapping[int, str]) -> Sample:
    """The numbers of a setting's runs: of the metric the last, of bytes and seconds the sums."""

    def last(run: RunRecord, column: str) -> float | None:
        # The last round that has it: where its number is none, such as the loss of a model that is ruined,
        # an earlier one would pass for it.
        found = [row[column] for row in run.rows if column in row]
        return float(found[-1]) if found and isinstance(found[-1], int | float) else None

    def total(run: RunRecord, *columns: str) -> float:
        return float(sum(row.get(column) or 0 for row in run.rows for column in columns))

    def by_seed(numbers: Mapping[int, float | None]) -> dict[int, float]:
        return {seed: number for seed, number in numbers.items() if number is not None}

    seeds = [int(run.options["seed"]) for run in runs]
    columns = {
        "val_loss": by_seed({s: last(run, "val_loss") for s, run in zip(seeds, runs, strict=True)}),
        "bytes_up": {s: total(run, "bytes_up") for s, run in zip(seeds, runs, strict=True)},
        "bytes": {s: total(run, "bytes_up", "bytes_down") for s, run in zip(seeds, runs, strict=True)},
        "seconds": {s: total(run, "seconds") for s, run in zip(seeds, runs, strict=True)},
    }
    for column in ("consensus_error_relative", "personal_val_accuracy"):  # a graph's; clients' own
        found = by_seed({s: last(run, column) for s, run in zip(seeds, runs, strict=True)})
        columns = ({column: found} if found else {}) | columns
    return Sample(
        label, by_seed({s: last(r, metric) for s, r in zip(seeds, runs, strict=True)}), columns, failed
    )


def compared(samples: Sequence[Sample]) -> list[Compared]:
    """Every setting, compared with the first."""
    first = samples[0].metric
    settings = []
    for place, sample in enumerate(samples):
        numbers = list(sample.metric.values())
        mean = statistics.fmean(numbers) if numbers else math.nan
        sd = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
        both = sorted(first.keys() & sample.metric.keys()) if place else []
        found = Compared(sample, mean, sd)
        if both:
            differences = [sample.metric[seed] - first[seed] for seed in both]
            found = Compared(sample, mean, sd, statistics.fmean(differences), *_paired(differences))
        settings.append(found)
    return _holm(settings)


def _paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """The 95 % interval of a mean difference, and the p-value of there being none."""
    if len(differences) < 2:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(differences)
    # The test divides by the spread: of a few seeds with one difference it would call anything certain.
    if math.isclose(statistics.pstdev(differences), 0, abs_tol=1e-12):
        return mean, mean, math.nan
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _holm(settings: Sequence[Compared]) -> list[Compared]:
    """The same with p-values that allow for how many there are."""
    order = sorted(
        (k for k, one in enumerate(settings) if not math.isnan(one.p)), key=lambda k: settings[k].p
    )
    adjusted, largest = list(settings), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, settings[k].p * (len(order) - rank)))
        one = settings[k]
        adjusted[k] = Compared(one.sample, one.mean, one.sd, one.difference, one.low, one.high, largest)
    return adjusted


def columns_of(settings: Sequence[Compared]) -> list[str]:
    """The other numbers that some setting has."""
    return list(dict.fromkeys(column for one in settings for column in one.sample.columns))


def as_csv(settings: Sequence[Compared], metric: str) -> str:
    """A line per setting, numbers whole."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    others = columns_of(settings)
    writer.writerow(
        ["setting", "n", f"{metric}_mean", f"{metric}_sd", "difference", "low", "high", "p", "verdict"]
        + [f"{column}_mean" for column in others]
        + ["failed_seeds"]
    )
    for one in settings:
        means = [_mean(one.sample.columns.get(column, {})) for column in others]
        numbers = [one.mean, one.sd, one.difference, one.low, one.high, one.p]
        failed = " ".join(map(str, one.sample.failed))
        size = len(one.sample.metric)
        row = [one.sample.label, size, *map(_plain, numbers), one.verdict, *map(_plain, means), failed]
        writer.writerow(row)
    return out.getvalue()


def as_latex(settings: Sequence[Compared], metric: str) -> str:
    """A table for a paper, with the rules of booktabs."""
    lines = [r"\begin{tabular}{lrrrr}", r"\toprule"]
    title, plus_minus = metric.replace("_", r"\_"), r"\pm"
    lines += [rf"setting & $n$ & {title} & difference & megabytes \\", r"\midrule"]
    for one in settings:
        star = "$^{*}$" if one.p < LEVEL else ""
        against = "" if math.isnan(one.difference) else f"${one.difference:+.4f}${star}"
        cells = [
            _escaped(one.sample.label),
            str(len(one.sample.metric)),
            f"${spread(one, plus_minus)}$",
            against,
            f"{_mean(one.sample.columns.get('bytes', {})) / 1e6:.1f}",
        ]
        lines.append(" & ".join(cells) + r" \\")
    note = f"% *: p < {LEVEL:g} in a paired t-test against the first row, after Holm's correction"
    return "\n".join([note, *lines, r"\bottomrule", r"\end{tabular}", ""])


def spread(one: Compared, sign: str = "±") -> str:
    """Mean and standard deviation."""
    return f"{one.mean:.4f}" if math.isnan(one.sd) else f"{one.mean:.4f} {sign} {one.sd:.4f}"


def _mean(numbers: Mapping[int, float]) -> float:
    return statistics.fmean(numbers.values()) if numbers else math.nan


def _plain(number: float) -> Any:
    return "" if math.isnan(number) else number


def _escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)
