"""The table of how far A moves in local steps, against what freezing it does to the consensus error."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cells import interval, table

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
    def step(self) -> float:
        """How far Adam may take an entry of A in a step, in units of A's start: lr / rms(A₀)."""
        start = [next(iter(run["factors"].values()))["start_rms"] for run in self.both]
        return self.settings["lr"] / statistics.fmean(start)

    def ratios(self, name: str, round_: int) -> list[float]:
        """How many times as large an error is with A trained, by seed, after a round."""
        pairs = zip(self.both, self.frozen, strict=True)
        return [one[name][round_ - 1] / other[name][round_ - 1] for one, other in pairs]

    def mean_factor(self, what: str, round_: int) -> float:
        """Of the runs with A trained, what a checkpoint says of the factors; see `drift.factors`."""
        return statistics.fmean(run["factors"][str(round_)][what] for run in self.both)


def pairs_of(result: dict[str, Any]) -> list[Pairs]:
    """All settings that have a seed with both; by learning rate."""
    cases: dict[float, dict[str, dict[int, Run]]] = {}
    for run in result["runs"]:
        case = cases.setdefault(run["settings"]["lr"], {})
        case.setdefault(run["settings"]["training_type"], {})[run["seed"]] = run
    found = []
    for _, case in sorted(cases.items()):
        both, frozen = case.get("LoRA", {}), case.get("DFL-LoRA", {})
        if seeds := sorted(both.keys() & frozen.keys()):
            own = [both[seed] for seed in seeds]
            found.append(Pairs(own[0]["settings"], own, [frozen[seed] for seed in seeds]))
    return found


def drift_table(result: dict[str, Any]) -> list[str]:
    """A row per learning rate and number of local steps."""
    rows = []
    for pairs in pairs_of(result):
        for round_ in _some(map(int, pairs.both[0]["factors"])):
            steps = round_ * pairs.settings["local_steps"]
            moved, grown, by_B_at_start, by_B, by_A = (
                pairs.mean_factor(what, round_)
                for what in ("moved", "grown", "by_B_at_start", "by_B", "by_A")
            )
            lora, frozen = (
                statistics.fmean(run["consensus_error"][round_ - 1] for run in runs)
                for runs in (pairs.both, pairs.frozen)
            )
            rows.append(
                [
                    f"{pairs.settings['lr']:g}",
                    str(steps),
                    f"{pairs.step * steps:.2g}",
                    str(len(pairs.both)),
                    f"{lora:.3g}",
                    f"{frozen:.3g}",
                    interval(pairs.ratios("consensus_error", round_)),
                    interval(pairs.ratios("consensus_error_relative", round_)),
                    f"{moved:.2f}",
                    f"{grown:.2f}",
                    f"{by_B_at_start:.3g}",
                    f"{by_B:.3g}",
                    f"{by_A:.3g}",
                ]
            )
    head = [
        "lr",
        "steps",
        "lr · steps / rms(A₀)",
        "n",
        "error, LoRA",
        "DFL-LoRA",
        "ratio",
        "of relative errors",
    ]
    head += ["A_i moved", "A_i grown", "by the Bs at A₀", "by the Bs", "by the As"]
    return [*table(head, rows), "", _note(result)]


def _some(rounds: Iterable[int]) -> list[int]:
    """The first of some rounds, the last, and between them such as are well apart."""
    shown, every = list[int](), sorted(rounds)
    for round_ in every:
        if not shown or round_ >= 1.6 * shown[-1] or round_ == every[-1]:
            shown.append(round_)
    return shown


def _note(result: dict[str, Any]) -> str:
    settings = result["runs"][0]["settings"]
    seeds = sorted({run["seed"] for run in result["runs"]})
    rounds = f"Rounds of {settings['local_steps']} steps, errors after mixing."
    when = rounds if settings["mixing_step"] > 0.01 else "Nobody mixes."
    return (
        f"minilm, sst2: 7 peers, Dirichlet {settings['alpha']}, the same division for all, batches of "
        f"{settings['batch_size']}, LoRA r {settings['lora_r']}, Adam, heads not mixed; seeds "
        f"{', '.join(map(str, seeds))}, n of them finished in both. {when} Ratio: LoRA's by "
        "DFL-LoRA's, the geometric mean over seeds and the 95 % interval of Student's t of the logarithms. "
        "Of LoRA: how far the peers' As have moved and how large they are, both in units of A₀'s norm; and "
        "the error if only the Bs differed and A were A₀, if only the Bs differed, and if only the As did."
    )
