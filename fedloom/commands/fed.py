"""`fedloom fed`: from options to a run's folder, and what it holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fedloom.options.fed import FedConfig
from fedloom.runs.record import RunRecord
from fedloom.runs.run_folder import run_folder
from fedloom.training.algorithms import algorithm_with_server, chosen_attack
from fedloom.training.fed import drive, write_client_counts
from fedloom.training.launch import built, processes, recall
from fedloom.training.loop import Callback
from fedloom.training.setup_fed import build, intervals
from fedloom.training.shared import Shared


def run_fed(
    config: FedConfig,
    *,
    on_round: Callback | None = None,
    on_validation: Callback | None = None,
    shared: Shared | None = None,
) -> RunRecord:
    """`fedloom fed`: from a config to a run's folder, and what it holds.

    Args:
        config: The options.
        on_round: Is given the metrics of every round, as `metrics.jsonl` has them, once they are written.
        on_validation: Is given those of every round with a validation, the one before training (round 0)
            included. Of several processes rank 0 calls both. What they raise ends the run, with a checkpoint.
        shared: Give the same one to several runs, one after another, and data and a base that they have in
            common are read once; it keeps them in memory. The runs are what they are alone.

    Raises:
        UserError: A mistake of the user, or a run whose numbers are no longer finite.
        KeyboardInterrupt: After a checkpoint was left.
    """
    algorithm_with_server(config)  # what cannot be combined is told before there is a folder
    chosen_attack(config)
    with processes(config.device) as group:
        folder = run_folder(config)
        with built(config, folder, partial(build, shared=shared), group) as (run, parts):
            if group.rank == 0:
                write_client_counts(folder, parts)
            watched = replace(intervals(run.config), on_round=on_round, on_validation=on_validation)
            drive(parts, watched, folder, run.checkpoint)
        return recall(folder, group)
