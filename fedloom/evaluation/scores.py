"""Scores over judged examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): lower and upper bound.

    Args:
        right: How many were right.
        count: Of how many.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_of(right: Sequence[bool]) -> dict[str, Any]:
    """The share that is right, with its 95 % interval, and of how many."""
    low, high = wilson_interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def class_scores(expected: Sequence[int], predicted: Sequence[int], classes: int) -> tuple[float, float]:
    """F1 and Matthews' correlation.

    Args:
        expected: The classes, by number.
        predicted: Those predicted.
        classes: How many there are: of two, F1 is that of class 1; of more, the mean over the classes.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef  # type: ignore[import-untyped]

    average = "binary" if classes == 2 else "macro"
    f1 = f1_score(expected, predicted, labels=list(range(classes)), average=average, zero_division=0.0)
    return float(f1), float(matthews_corrcoef(expected, predicted))
