"""MLflow: its own settings (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME) say where to."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.runs.trackers import Row, Tracker, forgiving, scalars
from fedloom.runs.trackers.known import keep_id, known_id, options_of

EXPERIMENT = "fedloom"
_LONGEST = 500
"""Characters of an option's value that every store of MLflow takes."""


def open_tracker(folder: Path, resume_round: int | None, rows: Sequence[Row]) -> Tracker:
    """Begin a run there, or go on with it.

    Raises:
        UserError: It does not begin.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    try:
        client = MlflowClient()
        id_ = known_id(folder, "mlflow") if resume_round is not None else None
        if id_ is None:
            id_ = _begin(client, folder)
        else:
            client.set_terminated(id_, "RUNNING")
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"report_to: mlflow does not begin ({message}); set MLFLOW_TRACKING_URI to a server or a folder "
            "that it can use, such as file:mlruns, or leave it out"
        ) from error
    keep_id(folder, "mlflow", id_)

    def write(row: Row) -> None:
        now = int(1000 * time.time())
        found = [(name, float(value)) for name, value in scalars(row) if math.isfinite(value)]
        client.log_batch(id_, metrics=[Metric(name, value, now, row["round"]) for name, value in found])

    return forgiving(
        "mlflow",
        Tracker(write, close=lambda ended: client.set_terminated(id_, "FINISHED" if ended else "FAILED")),
    )


def _begin(client: Any, folder: Path) -> str:
    """Make a run in the experiment, with the options as its parameters."""
    from mlflow.entities import Param

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    options = options_of(folder)
    run = client.create_run(number, run_name=str(options.get("exp_name", folder.name)))
    params = [Param(key, str(value)[:_LONGEST]) for key, value in options.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    return str(run.info.run_id)
