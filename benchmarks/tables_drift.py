"""The table of how far A may move in a round, against what freezing it does to the consensus error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cells import DASH, table
from scipy import stats

Run = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """A setting: its runs with both factors trained and with A frozen, seed by seed.

    Attributes:
        settings: Those of the runs.
        both: With A trained.
        frozen: With A frozen, the same seeds.
    """

    settings: dict[str, Any]
    both: list[Run]
    frozen: list[Run]

    @property
    def reach(self) -> float:
        """How far Adam may take an entry of A in a round, in units of A's start: lr · K / rms(A₀)."""
        start = statistics.fmean(run["factors"]["start_rms"] for run in self.both)
        return self.settings["lr"] * self.settings["local_steps"] / start

    def ratios(self, name: str, round_: int) -> list[float]:
        """How many times as large an error is with A trained, by seed; rounds from 0, -1 is the last."""
        return [
            one[name][round_] / other[name][round_] for one, other in zip(self.both, self.frozen, strict=True)
        ]


def pairs_of(result: dict[str, Any]) -> list[Pairs]:
    """All settings that have a seed with both; in the order of their reach."""
    cases: dict[tuple[Any, ...], dict[str, dict[int, Run]]] = {}
    for run in result["runs"]:
        key = tuple(run["settings"][name] for name in ("name", "lr", "local_steps", "num_rounds"))
        cases.setdefault(key, {}).setdefault(run["settings"]["training_type"], {})[run["seed"]] = run
    found = []
    for case in cases.values():
        both, frozen = case.get("LoRA", {}), case.get("DFL-LoRA", {})
        if seeds := sorted(both.keys() & frozen.keys()):
            own = [both[seed] for seed in seeds]
            found.append(Pairs(own[0]["settings"], own, [frozen[seed] for seed in seeds]))
    return sorted(found, key=lambda pairs: (pairs.settings["name"], pairs.settings["lr"], pairs.reach))


def geometric(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of some ratios and its 95 % interval, Student's t of their logarithms; nan of one."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def drift_table(result: dict[str, Any]) -> list[str]:
    """A row per setting, the errors after its last round and after its first."""
    rows = []
    for pairs in pairs_of(result):
        moved, apart, by_B, by_A = (
            statistics.fmean(run["factors"][what] for run in pairs.both)
            for what in ("moved", "apart", "by_B", "by_A")
        )
        rows.append(
            [
                pairs.settings["name"],
                f"{pairs.settings['lr']:g}",
                f"{pairs.settings['num_rounds']} × {pairs.settings['local_steps']}",
                f"{pairs.reach:.2g}",
                str(len(pairs.both)),
                *(
                    f"{statistics.fmean(run['consensus_error'][-1] for run in runs):.3f}"
                    for runs in (pairs.both, pairs.frozen)
                ),
                _interval(pairs.ratios("consensus_error", -1)),
                _interval(pairs.ratios("consensus_error_relative", -1)),
                _interval(pairs.ratios("consensus_error", 0)),
                f"{moved:.2f}",
                f"{apart:.2f}",
                f"{by_B:.3f}",
                f"{by_A:.3f}",
            ]
        )
    head = ["graph", "lr", "rounds × steps", "lr · K / rms(A₀)", "n", "error, LoRA", "DFL-LoRA"]
    head += ["ratio", "of relative errors", "of errors after one round"]
    head += ["A moved", "As apart", "by the Bs", "by the As"]
    return [*table(head, rows), "", _note(result)]


def _interval(ratios: Sequence[float]) -> str:
    mean, low, high = geometric(ratios)
    return f"{mean:.2f}" + ("" if math.isnan(low) else f" ({low:.2f}{DASH}{high:.2f})")


def _note(result: dict[str, Any]) -> str:
    settings = result["runs"][0]["settings"]
    seeds = sorted({run["seed"] for run in result["runs"]})
    return (
        f"minilm, sst2: 7 peers, Dirichlet {settings['alpha']}, the same division for all, batches of "
        f"{settings['batch_size']}, LoRA r {settings['lora_r']}, Adam, heads not mixed; seeds "
        f"{', '.join(map(str, seeds))}, n of them finished in both. Ratio: LoRA's error by that of DFL-LoRA, "
        "the geometric mean over seeds and the 95 % interval of Student's t of the logarithms. Of LoRA, at "
        "the end: how far the mean of A has moved and how far the peers' are from it, relative to A₀'s norm; "
        "and the error if only the Bs differed, or only the As."
    )
