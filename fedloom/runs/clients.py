"""Who holds what in a run: clients.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.data.encode import Tokens
from fedloom.runs.files import write_atomically

CLIENTS_FILE = "clients.json"
NO_LABEL = "no label"


def write_clients(
    folder: Path,
    train: Sequence[Tokens],
    clients: Sequence[np.ndarray],
    validation: Sequence[Sequence[Tokens]],
    *,
    server: int = 0,
) -> None:
    """Write clients.json to a run's folder, with counts alone, so that a thousand clients take few kilobytes.

    Only this user may read it.

    For the arguments after the run's folder see `count_held`.
    """
    content = count_held(train, clients, validation, server=server)
    write_atomically(folder / CLIENTS_FILE, json.dumps(content) + "\n", private=True)


def count_held(
    train: Sequence[Tokens],
    clients: Sequence[np.ndarray],
    validation: Sequence[Sequence[Tokens]],
    *,
    server: int = 0,
) -> dict[str, Any]:
    """Count each client's examples and labels.

    Args:
        train: All training sequences.
        clients: For each client the indices of its own.
        validation: One list of sequences, or one for each client; the same list may stand there many times.
        server: How many training sequences the server keeps.

    Returns:
        `examples`, a number per client; `labels`, for each label a number per client, empty where no example
        has one; `validation`, the size of every distinct list; `server`.
    """
    found = [Counter(train[i].kind or NO_LABEL for i in own.tolist()) for own in clients]
    labels = sorted({label for counter in found for label in counter})
    return {
        "examples": [len(own) for own in clients],
        "labels": {}
        if labels == [NO_LABEL]
        else {label: [counter[label] for counter in found] for label in labels},
        "validation": [len(own) for own in {id(own): own for own in validation}.values()],
        "server": server,
    }
