"""LoRA and DFL-LoRA round by round: from the folder of a comparison to one file.

    fedloom compare configs/compare/sst2-whole-epochs.yaml --out_dir FOLDER
    python benchmarks/over_rounds.py configs/compare/sst2-whole-epochs.yaml FOLDER --out FILE.json

Kept are the consensus errors after every round and the accuracies of all validations, up to the last round
that every run has done: runs that were stopped before their end count as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from comparison_folder import Runs, begun_runs, write_result

from fedloom.errors import UserError
from fedloom.options.compare import read_plan
from fedloom.runs.record import RunRecord

SETTINGS = (
    *("model_checkpoint", "dataset_type", "num_clients", "name", "partition", "alpha", "min_size"),
    *("training_type", "lora_r", "lora_alpha", "target_modules", "mix_head", "lr", "batch_size"),
    *("local_epochs", "local_steps", "num_rounds"),
)
WAYS = ("LoRA", "DFL-LoRA")
ERRORS = ("consensus_error", "consensus_error_relative")
ACCURACIES = ("val_accuracy", "val_accuracy_min", "val_accuracy_max")


def summarised(run: RunRecord, rounds: int) -> dict[str, Any]:
    """What tables and figures take from the first rounds of a run.

    Raises:
        UserError: A round has no row.
    """
    if missing := set(range(1, rounds + 1)) - {row["round"] for row in run.rows}:
        raise UserError(f"{run.folder}: no metrics of round {min(missing)}; make the run again")
    done = [row for row in run.rows if row["round"] <= rounds]
    return {
        "seed": run.seed,
        "settings": {name: run.options[name] for name in SETTINGS},
        "rounds_done": run.rounds,
        **{name: [row[name] for row in done if row["round"] > 0] for name in ERRORS},
        # Every so many rounds, the first time before the first one; mean, least and most of peers.
        "validations": [{n: row[n] for n in ("round", *ACCURACIES)} for row in done if "val_accuracy" in row],
    }


def found_in(config: Path, labelled: Runs) -> dict[str, Any]:
    """What tables and figures take from all runs.

    Raises:
        UserError: Something else than the way of training is compared, or no seed has a run of either way.
    """
    if any(run.setting.keys() != {"training_type"} for run in read_plan(config).runs):
        raise UserError(f"{config}: grid: must name training_type alone; compare other things by compared.py")
    runs = [run for _, run in labelled]
    if not set.intersection(
        *({run.seed for run in runs if run.options["training_type"] == way} for way in WAYS)
    ):
        raise UserError(f"{config}: no seed has a run of {' and one of '.join(WAYS)} that has done a round")
    rounds = min(run.rounds for run in runs)
    return {"rounds": rounds, "runs": [summarised(run, rounds) for run in runs]}


def main(arguments: list[str] | None = None) -> int:
    """Read what is there, and write. Returns the exit status."""
    return write_result("over-rounds", __doc__, found_in, arguments, begun_runs)


if __name__ == "__main__":
    sys.exit(main())
