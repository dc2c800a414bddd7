"""Rounds that were told and lost with the process: epsilon counts them, since they are played again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fedloom.runs.checkpoint import round_of
from fedloom.runs.files import write_atomically
from fedloom.runs.metrics import read_rows
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runtimes.group import Group

log = logging.getLogger(__name__)

B = TypeVar("B", bound=Any)

LOST_FILE = "privacy.json"
"""In a run's folder: how many rounds were told and then lost, where it was killed after its checkpoint."""


def lost_rounds(folder: Path, checkpoint: Path | None) -> int:
    """How many rounds of a run were told and are no more in its checkpoint, at this start or before.

    The count is kept before the rows are cut off, so that it is too large rather than too small. A round that
    clients elsewhere were asked for (`asks_for`) counts without a row, too: some may have answered.

    Raises:
        Damaged: The file that keeps it is none.
    """
    done = 0 if checkpoint is None else round_of(checkpoint)
    kept = read_mapping(folder / LOST_FILE)
    before, asked = (_count(folder, kept, name) for name in ("rounds_lost", "round_asked_for"))
    rounds = [row["round"] for row in read_rows(folder)]
    lost = before + sum(round_ > done for round_ in rounds) + (asked > max([done, *rounds]))
    if lost > before:
        write_atomically(folder / LOST_FILE, json.dumps({"rounds_lost": lost}) + "\n")
        log.warning("epsilon counts %d rounds that were lost and are played again with other noise", lost)
    return lost


def _count(folder: Path, kept: Mapping[str, Any], name: str) -> int:
    found = kept.get(name, 0)
    if type(found) is not int or found < 0:
        raise Damaged(folder / LOST_FILE, f"{name} is {str(found)[:40]!r}")
    return found


def asks_for(folder: Path, round_: int) -> None:
    """Keep, before clients elsewhere are asked for a round, that they will have been."""
    kept = {name: n for name, n in read_mapping(folder / LOST_FILE).items() if name == "rounds_lost"}
    write_atomically(folder / LOST_FILE, json.dumps(kept | {"round_asked_for": round_}) + "\n")


def with_lost(budget: B, folder: Path, checkpoint: Path | None, group: Group) -> B:
    """A budget that counts the rounds that were lost; with a seed they are played again as they were.

    Args:
        budget: The run's.
        folder: The run's.
        checkpoint: Where the run goes on from.
        group: The run's processes.
    """
    if budget.seed is not None:
        return budget
    lost = group.together(lambda: lost_rounds(folder, checkpoint) if group.rank == 0 else 0)
    return replace(budget, lost=group.share(lost))
