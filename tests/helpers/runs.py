"""Folders of runs, written by hand."""

import json
from pathlib import Path
from typing import Any

from run_files import write_rows

from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.runs.run_folder import write_run_config


def rows_of(losses, **more: list) -> list[dict[str, Any]]:
    """Rows of rounds 0, 1, ... with these validation losses; 10 bytes up, 5 down and 2 seconds a round."""
    return [
        {"round": n, "val_loss": loss, "val_accuracy": 1 - loss / 4}
        | (
            {"train_loss": loss + 1, "bytes_up": 10, "bytes_down": 5, "seconds": 2.0, "tokens": 7}
            if n
            else {}
        )
        | {name: column[n] for name, column in more.items() if column[n] is not None}
        for n, loss in enumerate(losses)
    ]


def leave_run(folder: Path, rows, finished=True, clients=None, **options: Any) -> Path:
    """Write what a run leaves; `name` among the options makes it one of peers."""
    made = DflConfig if "name" in options else FedConfig
    fixed = {"model_checkpoint": "m"} if made is DflConfig else {"model_name": "m"}
    config = made(**{**fixed, "exp_name": folder.name, "out_dir": str(folder.parent), **options})
    folder.mkdir(parents=True)
    write_run_config(folder, config, {"fedloom": "0", "torch": "2"}, "cpu")
    write_rows(folder / "metrics.jsonl", rows)
    if finished:
        content = {"rounds": rows[-1]["round"], "peak_memory_mib": 512.0}
        (folder / "summary.json").write_text(json.dumps(content))
    if clients is not None:
        (folder / "clients.json").write_text(json.dumps(clients))
    return folder


def leave_predictions(folder: Path, rows: list[dict[str, Any]], numbers: dict[str, Any]) -> None:
    """Write what `fedloom eval` leaves."""
    (folder / "eval").mkdir()
    write_rows(folder / "eval" / "predictions.jsonl", rows)
    (folder / "eval" / "eval.json").write_text(json.dumps(numbers))
