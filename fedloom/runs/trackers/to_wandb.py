"""Weights & Biases: its own settings (`wandb login`, WANDB_MODE, WANDB_PROJECT, …) say where to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from fedloom.errors import UserError
from fedloom.runs.trackers import Row, Tracker, forgiving, scalars
from fedloom.runs.trackers.known import keep_id, known_id, options_of

PROJECT = "fedloom"


def open_tracker(folder: Path, resume_round: int | None, rows: Sequence[Row]) -> Tracker:
    """Begin a run there, or go on with it.

    Raises:
        UserError: It does not begin.
    """
    import wandb

    id_ = (known_id(folder, "wandb") if resume_round is not None else None) or secrets.token_hex(4)
    options = options_of(folder)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=str(options.get("exp_name", folder.name)),
            dir=str(folder),
            config=options,
            id=id_,
            resume="allow",
            settings=wandb.Settings(console="off"),  # the terminal is the run's own
        )
        # Rounds are its x axis. Its own counter of steps only grows, and a run that goes on repeats some.
        run.define_metric("*", step_metric="round")
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"report_to: wandb does not begin ({message}); log in with `wandb login`, set "
            "WANDB_MODE=offline, or leave it out"
        ) from error
    keep_id(folder, "wandb", id_)
    return forgiving(
        "wandb",
        Tracker(
            write=lambda row: run.log({"round": row["round"], **dict(scalars(row))}),
            close=lambda ended: run.finish(exit_code=0 if ended else 1),
        ),
    )
