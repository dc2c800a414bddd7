"""One problem, and the three parts that a data set comes in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One problem with its solution.

    Attributes:
        question: What is asked, without the instruction.
        answer: What the model learns to write.
        final: What a right answer comes to: its final number alone, in plain form such as ``"19"``, or what
            it says in words; "" where it cannot be judged.
        label: A class of the example (sentiment, operation, problem type), for classification and for splits
            by label; "" where there is none.
        pair: The two texts that a sequence classifier reads; None where it reads the question.
    """

    question: str
    answer: str
    final: str
    label: str = ""
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Splits:
    """The examples to train on, to validate on while training, and to judge the result by."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
