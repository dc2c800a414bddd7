"""The table of methods that train a whole epoch in a round, against DFL-LoRA."""

from __future__ import annotations

import statistics
from typing import Any

from cells import DASH, interval, percent_of, points, table

Run = dict[str, Any]

ERRORS = ("consensus_error", "consensus_error_relative")


def epochs_table(result: dict[str, Any]) -> list[str]:
    """A row per method: how far apart peers are, and how often right, against DFL-LoRA seed by seed."""
    cases: dict[str, dict[int, Run]] = {}
    for run in result["runs"]:
        cases.setdefault(run["settings"]["method"], {})[run["seed"]] = run
    frozen, rows = cases["DFL-LoRA"], []
    for method, by_seed in cases.items():
        pairs = [(by_seed[seed], frozen[seed]) for seed in sorted(by_seed.keys() & frozen.keys())]
        against = [""] * 4
        if method != "DFL-LoRA":
            # So many rounds send as much as DFL-LoRA's: every round sends the same.
            equal = min(int(sum(other["bytes_up"]) / one["bytes_up"][0]) for one, other in pairs)
            against = [
                *(interval(one[name][-1] / other[name][-1] for one, other in pairs) for name in ERRORS),
                points(accuracy(one) - accuracy(other) for one, other in pairs),
                points(accuracy(one, equal) - accuracy(other) for one, other in pairs),
            ]
        rows.append(
            [
                "LoRA (D-PSGD)" if method == "D-PSGD" else method,
                str(len(pairs)),
                *(f"{statistics.fmean(one[name][-1] for one, _ in pairs):.3g}" for name in ERRORS),
                percent_of(accuracy(one) for one, _ in pairs),
                percent_of(one["averaged_accuracy"] for one, _ in pairs),
                f"{statistics.fmean(sum(one['bytes_up']) for one, _ in pairs) / 1e6:.1f} MB",
                *against,
            ]
        )
    head = ["method", "n", "error", "relative", "accuracy, mean of peers", "of the averaged adapter", "sent"]
    head += ["error by DFL-LoRA's", "relative", "points of accuracy", "at equal bytes"]
    settings = result["runs"][0]["settings"]
    note = (
        f"minilm, sst2: 7 peers on {settings['name']}, Dirichlet {settings['alpha']}, one division, "
        f"{settings['num_rounds']} rounds of an epoch each, batches of {settings['batch_size']}, Adam, lr "
        f"{settings['lr']:g}, LoRA r {settings['lora_r']}, heads not mixed; after the last round's mixing. "
        f"Accuracies: means (smallest{DASH}largest seed). Against DFL-LoRA: seed by seed; accuracy is the "
        "peers'; 95 % intervals where n > 1."
    )
    return [*table(head, rows), "", note]


def accuracy(run: Run, round_: int | None = None) -> float:
    """The peers' mean accuracy after a round, or after the last one."""
    return float(run["val_accuracy"][str(round_ or run["settings"]["num_rounds"])])
