"""Sentence classification from GLUE (Wang et al. 2019, arXiv:1804.07461): rows to examples.

GLUE keeps the labels of its test splits to itself: they are all -1 there, and nothing here uses them. Papers
report accuracy on the published validation split, so that split is `validation` here too.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.data.answers import normal_number
from fedloom.data.example import Example
from fedloom.data.fields import Row, class_name, text
from fedloom.data.rows import SPLIT_NAMES, SplitNames

HUB = "nyu-mll/glue"
SENTIMENTS = ("negative", "positive")
ANSWERS = ("entailment", "not_entailment")
INFERENCES = ("entailment", "neutral", "contradiction")

# MNLI has two labelled splits beside train: texts of the genres of the training data ("matched") and of
# other genres. The first validates, the second is the test.
MNLI_SPLITS: SplitNames = {
    "train": SPLIT_NAMES["train"],
    "validation": ("validation_matched", "dev_matched", *SPLIT_NAMES["validation"]),
    "test": ("validation_mismatched", "dev_mismatched", *SPLIT_NAMES["test"]),
}


def sst2(row: Row) -> Example:
    """Reads a phrase of a film review and its sentiment."""
    label = class_name(row, SENTIMENTS)
    return Example(text(row, "sentence"), label, "", label)


def qnli(row: Row) -> Example:
    """Reads a question and a sentence that answers it (label 0) or does not."""
    label = class_name(row, ANSWERS)
    question, sentence = text(row, "question"), text(row, "sentence")
    return Example(f"Question: {question}\nSentence: {sentence}", label, "", label, (question, sentence))


def mnli(row: Row) -> Example:
    """Reads a premise and a hypothesis that follows from it, may be true, or contradicts it."""
    label = class_name(row, INFERENCES)
    premise, hypothesis = text(row, "premise"), text(row, "hypothesis")
    return Example(f"Premise: {premise}\nHypothesis: {hypothesis}", label, "", label, (premise, hypothesis))


def has_no_labels(rows: Sequence[Row]) -> bool:
    """Tells whether these are the rows of a test split whose labels GLUE keeps to itself."""
    return all(normal_number(row.get("label")) == "-1" for row in rows)
