"""What Weights & Biases and MLflow are told of a run at its beginning, and by which id they know it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedloom.options.parsing import RUN_CONFIG, RUN_RECORD
from fedloom.runs.files import write_atomically
from fedloom.runs.reading import read_mapping

IDS_FILE = "trackers.json"


def options_of(folder: Path) -> dict[str, Any]:
    """The run's options, as its `config.yaml` has them; secrets are not among them."""
    return {name: value for name, value in read_mapping(folder / RUN_CONFIG).items() if name != RUN_RECORD}


def known_id(folder: Path, name: str) -> str | None:
    """The id under which a program knows the run that goes on; None where it has not heard of it."""
    found = read_mapping(folder / IDS_FILE).get(name)
    return found if isinstance(found, str) else None


def keep_id(folder: Path, name: str, id_: str) -> None:
    """Write down an id, beside those of other programs."""
    ids = read_mapping(folder / IDS_FILE) | {name: id_}
    write_atomically(folder / IDS_FILE, json.dumps(ids) + "\n")
