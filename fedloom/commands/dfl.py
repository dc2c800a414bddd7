"""`fedloom dfl`: from options to a run's folder, and what it holds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from fedloom.options.graph import DflConfig
from fedloom.runs.logfile import logging_to
from fedloom.runs.record import RunRecord
from fedloom.runs.run_folder import run_folder, write_clients
from fedloom.training.algorithms import algorithm_on_graph, chosen_attack
from fedloom.training.dfl import drive
from fedloom.training.launch import built, processes, recall
from fedloom.training.loop import Callback
from fedloom.training.setup_graph import build, intervals
from fedloom.training.shared import Shared


def run_dfl(
    config: DflConfig,
    *,
    on_round: Callback | None = None,
    on_validation: Callback | None = None,
    shared: Shared | None = None,
) -> RunRecord:
    """`fedloom dfl`: from a config to a run's folder, and what it holds; see `run_fed` for all the rest."""
    algorithm_on_graph(config)  # what cannot be combined is told before there is a folder
    chosen_attack(config)
    with processes(config.device) as group:
        folder = run_folder(config)
        with (
            built(config, folder, partial(build, shared=shared), group) as (run, parts),
            ExitStack() as resources,
        ):
            if group.rank == 0:
                write_clients(folder, parts.train, parts.peers, parts.validation)
                resources.enter_context(logging_to(folder / config.log_path))
            watched = replace(intervals(run.config), on_round=on_round, on_validation=on_validation)
            drive(parts, watched, folder, run.checkpoint)
        return recall(folder, group)
