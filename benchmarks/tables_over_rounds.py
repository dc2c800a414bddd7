"""The table of how LoRA's and DFL-LoRA's consensus errors go over the rounds of one setting."""

from __future__ import annotations

import statistics
from typing import Any

from cells import DASH, interval, points, table
from tables_drift import Pairs, Run, pairs_of

SHOWN = (1, 2, 5, 10, 15, 20, 32, 64, 96, 128, 192, 256)


def over_rounds_table(result: dict[str, Any]) -> list[str]:
    """A row for some of the rounds; accuracies where there was a validation."""
    (pairs,) = pairs_of(result)
    ways = (pairs.both, pairs.frozen)
    rows = []
    for round_ in (round_ for round_ in SHOWN if round_ <= result["rounds"]):
        cells = [str(round_), str(len(pairs.both))]
        for name, digits in (("consensus_error", 2), ("consensus_error_relative", 3)):
            means = [statistics.fmean(run[name][round_ - 1] for run in runs) for runs in ways]
            cells += [f"{mean:.{digits}f}" for mean in means] + [interval(pairs.ratios(name, round_))]
        lora, frozen = ([_accuracy(run, round_) for run in runs] for runs in ways)
        if None in (*lora, *frozen):
            cells += [""] * 3
        else:
            cells += [f"{100 * statistics.fmean(of_way):.1f}" for of_way in (lora, frozen)]
            cells.append(points(one - other for one, other in zip(lora, frozen, strict=True)))
        rows.append(cells)
    head = ["round", "n", "error, LoRA", "DFL-LoRA", "ratio", "relative, LoRA", "DFL-LoRA", "ratio"]
    head += ["accuracy of peers, LoRA, %", "DFL-LoRA", "points"]
    return [*table(head, rows), "", _note(pairs)]


def _accuracy(run: Run, round_: int) -> float | None:
    """The mean of the peers' accuracies after a round, where that was validated."""
    return next((one["val_accuracy"] for one in run["validations"] if one["round"] == round_), None)


def _note(pairs: Pairs) -> str:
    settings, seeds = pairs.settings, ", ".join(str(run["seed"]) for run in pairs.both)
    steps, epochs = settings["local_steps"], settings["local_epochs"]
    work = f"{steps} steps" if steps else "a local epoch" if epochs == 1 else f"{epochs} local epochs"
    done = sorted({run["rounds_done"] for run in [*pairs.both, *pairs.frozen]})
    stopped = ""
    if done[0] < settings["num_rounds"]:
        stopped = (
            f" The runs were to have {settings['num_rounds']} rounds and were stopped after {done[0]}{DASH}"
            f"{done[-1]}."
        )
    targets = (settings["target_modules"] or "the default modules").replace(",", ", ")
    heads = "mixed" if settings["mix_head"] else "not mixed"
    return (
        f"{settings['model_checkpoint']}, {settings['dataset_type']}: {settings['num_clients']} peers on "
        f"{settings['name']}, {settings['partition']} {settings['alpha']} of at least "
        f"{settings['min_size']:,} examples, rounds of {work} in batches of {settings['batch_size']}, LoRA r "
        f"{settings['lora_r']} on {targets}, Adam, lr {settings['lr']}, heads {heads}; errors after mixing, "
        f"means over the seeds {seeds}. Ratio: LoRA's by DFL-LoRA's, the geometric mean over seeds and the "
        "95 % interval of Student's t of the logarithms; points: LoRA's accuracy less DFL-LoRA's, with the "
        f"same interval of the differences.{stopped}"
    )
