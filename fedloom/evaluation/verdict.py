"""What `fedloom eval` leaves and shows: eval.json, predictions.jsonl, a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fedloom.runs.files import write_atomically
from fedloom.runs.record import EVAL_FILE, PREDICTIONS_FILE


@dataclass(frozen=True)
class Verdict:
    """What came out for one adapter.

    Attributes:
        name: The adapter's; "base" for the model without one.
        folder: Where it lies.
        scores: accuracy, low, high, n, seconds; without_number of answers; f1 and matthews of classes; of
            preferences logp_accuracy, margin, logp_margin and loss, see `preference_scores`. Of
            answers that are judged by their loss: loss, in nats per token, and accuracy, of tokens, without
            an interval, since those of one answer depend on each other.
        predictions: For each example prompt, output, extracted, expected, right.
    """

    name: str
    folder: str | None
    scores: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]]


def write_results(folder: Path, facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
    """Write both files into a folder; those of an earlier evaluation are replaced.

    Only this user may read the predictions, which hold what was asked and what the model wrote.

    Args:
        folder: Of which this process is the only writer.
        facts: What all verdicts have in common.
        verdicts: One for each adapter.

    Raises:
        CannotWrite: The disk is full, or may not be written.
    """
    lines = [
        json.dumps({"adapter": verdict.name, **prediction}, ensure_ascii=False) + "\n"
        for verdict in verdicts
        for prediction in verdict.predictions
    ]
    then = "judge again, or choose another --output_path"
    text = "".join(lines).encode("utf-8", "replace")  # a model may write half of a surrogate pair
    write_atomically(folder / PREDICTIONS_FILE, text, private=True, then=then)
    adapters = [{"name": v.name, "folder": v.folder, **v.scores} for v in verdicts]
    content = json.dumps({**facts, "adapters": adapters}, indent=2)
    write_atomically(folder / EVAL_FILE, content + "\n", then=then)


_EXTRA = {
    "logp_accuracy": ("likelier", ".1%"),
    "margin": ("margin", ".3f"),
    "logp_margin": ("in nats", ".3f"),
    "loss": ("loss", ".4f"),
    "f1": ("F1", ".3f"),
    "matthews": ("Matthews", ".3f"),
    "without_number": ("no number", "d"),
}
"""Scores beside the share that is right, where they are there: heading and form."""


def results_table(facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> Table:
    """The verdicts as a table for the terminal, with their mean where there are several."""
    first = verdicts[0].scores
    columns = {name: heading for name, heading in _EXTRA.items() if name in first}
    about = ", chosen against rejected answer" if "margin" in first else ""
    table = Table(title=f"{facts['task']}, {facts['examples']} examples of {facts['split']}{about}")
    table.add_column("adapter", overflow="fold")
    right = "more reward" if "margin" in first else "right"
    shares = [right, "95 % interval"] if "low" in first else ["tokens right"]
    for column in (*shares, *(heading for heading, _ in columns.values())):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        scores = verdict.scores
        interval = [] if "low" not in scores else [f"{scores['low']:.1%} – {scores['high']:.1%}"]
        extra = [format(scores[name], form) for name, (_, form) in columns.items()]
        table.add_row(verdict.name, f"{scores['accuracy']:.1%}", *interval, *extra)
    adapters = [verdict for verdict in verdicts if verdict.folder is not None]
    if len(adapters) > 1:
        mean = statistics.mean(verdict.scores["accuracy"] for verdict in adapters)
        table.add_section()
        table.add_row("mean", f"{mean:.1%}")
    return table
