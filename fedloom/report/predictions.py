"""What `fedloom eval` left in a run's folder: its numbers, and what the model answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedloom.report.markup import Markup, join, tag
from fedloom.report.tables import table
from fedloom.runs.reading import Damaged
from fedloom.runs.record import EVAL_FOLDER, PREDICTIONS_FILE, RunRecord

OF_EACH = 3
"""Examples of right answers, and of wrong ones."""
LONGEST = 1200
"""Letters of a prompt or an output."""
MOST_ADAPTERS = 16


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one prompt.

    Attributes:
        prompt, output: What it read and wrote.
        extracted: What was read off the output; empty where it holds no answer.
        expected: What would be right.
        right: Whether it is.
    """

    prompt: str
    output: str
    extracted: str
    expected: str
    right: bool


def predictions(run: RunRecord) -> Markup:
    """The numbers and the examples of one run; nothing where nobody judged it."""
    found = list(_by_adapter(run).items())
    parts = [_numbers(run), *(_examples(*of_one, unfolded=of_one is found[-1]) for of_one in found)]
    if not any(parts):
        return Markup("")
    return tag("article", tag("h3", run.name), *parts, class_="judged")


def _numbers(run: RunRecord) -> Markup:
    adapters: list[dict[str, Any]] = run.evaluation.get("adapters", [])
    if not adapters:
        return Markup("")
    columns = {
        title: text for title, (name, text) in _SCORES.items() if any(name in scores for scores in adapters)
    }
    rows = [
        (scores["name"], *(text(scores) for text in columns.values())) for scores in adapters[:MOST_ADAPTERS]
    ]
    found = run.evaluation
    data = f"{found['examples']:,} examples of {found['task']}, {found['split']} split"
    more = f", the first {MOST_ADAPTERS} of {len(adapters)}" if len(adapters) > MOST_ADAPTERS else ""
    caption = f"Judged by fedloom eval on {data}{more}"
    return table(("Adapter", *columns), rows, caption, class_="numbers")


_SCORES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "Right": ("accuracy", lambda scores: f"{scores['accuracy']:.1%}"),
    "95 % interval": ("low", lambda scores: f"{scores['low']:.1%} to {scores['high']:.1%}"),
    "Chosen is likelier": ("logp_accuracy", lambda scores: f"{scores['logp_accuracy']:.1%}"),
    "Margin of rewards": ("margin", lambda scores: f"{scores['margin']:.4f}"),
    "Margin of log-probabilities": ("logp_margin", lambda scores: f"{scores['logp_margin']:.4f}"),
    "Loss": ("loss", lambda scores: f"{scores['loss']:.4f}"),
    "No number": ("without_number", lambda scores: f"{scores['without_number']:,}"),
    "F1": ("f1", lambda scores: f"{scores['f1']:.3f}"),
    "Matthews": ("matthews", lambda scores: f"{scores['matthews']:.3f}"),
}
"""Heading of a column, the name that shows whether there is one, and its text."""


def _by_adapter(run: RunRecord) -> dict[str, list[Prediction]]:
    """The first right and the first wrong answers of each adapter, the file read line by line."""
    path = run.folder / EVAL_FOLDER / PREDICTIONS_FILE
    found: dict[str, list[Prediction]] = {}
    if not path.is_file():
        return found
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                adapter, made = str(row["adapter"]), _prediction(row)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                why = f"line {number}: {type(error).__name__}: {error}"
                raise Damaged(path, why, "judge the run again, or remove the file") from None
            if adapter not in found and len(found) == MOST_ADAPTERS:
                continue
            kept = found.setdefault(adapter, [])
            if sum(made.right == other.right for other in kept) < OF_EACH:
                kept.append(made)
    return found


def _prediction(row: Mapping[str, Any]) -> Prediction:
    extracted = row["extracted"]
    return Prediction(
        prompt=str(row["prompt"]),
        output=str(row["output"]),
        extracted="" if extracted is None else str(extracted),
        expected=str(row["expected"]),
        right=bool(row["right"]),
    )


def _examples(adapter: str, predictions: list[Prediction], *, unfolded: bool) -> Markup:
    ordered = sorted(predictions, key=lambda one: one.right)
    return tag(
        "details",
        tag("summary", f"Answers of {adapter}: the first wrong and the first right ones"),
        tag("div", *(_card(one) for one in ordered), class_="cards"),
        open=unfolded,
    )


def _card(one: Prediction) -> Markup:
    word = "right" if one.right else "wrong"
    read = one.extracted or "nothing that could be read as an answer"
    return tag(
        "section",
        tag("h4", tag("span", "✓ " if one.right else "✗ ", aria_hidden="true"), word, class_=word),
        tag("p", "Prompt", class_="what"),
        tag("pre", _short(one.prompt)),
        tag("p", "Output", class_="what"),
        tag("pre", _short(one.output)),
        tag("p", join("Read off: ", tag("b", read), ". Expected: ", tag("b", one.expected), ".")),
        class_=f"card {word}",
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
