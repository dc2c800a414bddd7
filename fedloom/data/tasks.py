"""The data sets: what their rows look like, and how a row becomes a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedloom.data import arithmetic, glue
from fedloom.data.answers import extract_number, normal_number, stated_number
from fedloom.data.example import Example, Preference, Splits
from fedloom.data.fields import ABSENT, Row, class_name, inner, is_missing, label_of, number, text
from fedloom.data.formats import FORMATS
from fedloom.data.rows import SPLIT_NAMES, Limits, Located, SplitNames

__all__ = ["TASKS", "Example", "Splits", "Task"]


def keep_all(row: Row) -> bool:
    """Keeps every row: the rule of a task that uses its whole data set."""
    return True


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        name: As ``--data_name`` takes it.
        hub: The data set's name on the hub; "" where the package itself makes the data, or the user brings
            it.
        hub_config: Its configuration there.
        instruction: One sentence or two that tell the model what to do; part of every prompt.
        fields: Fields that a row must have, not empty. A bar separates the names that one may go by.
        to_example: Makes the problem of a row that has these fields; ValueError where a value is unusable.
        keep: Tells whether the row belongs to the task; ValueError as above.
        label_names: The classes, by number; examples are labelled with these names. Empty where the task is
            not one of classification.
        split_names: The names that each split may have, in order of preference.
        embedded: Makes the data from a seed, where the package does.
        own: Whether rows may have any format that people's own data have; see `fedloom.data.recognise`.
        data_format: The format that they are said to have, "auto" for any.
        columns: For each field the column that has it, where the column's name is another.
        limits: How many rows of a split are read at most, from the first on; without a limit all are.
        given: Rows that have been read already, by split.
    """

    name: str
    instruction: str
    fields: tuple[str, ...]
    to_example: Callable[[Row], Example | Preference]
    hub: str = ""
    hub_config: str | None = None
    keep: Callable[[Row], bool] = keep_all
    label_names: tuple[str, ...] = ()
    split_names: SplitNames = field(default_factory=lambda: SPLIT_NAMES)
    embedded: Callable[[int], Splits] | None = None
    own: bool = False
    data_format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)
    given: Mapping[str, list[Located]] | None = field(default=None, compare=False, repr=False)

    def mapped(self, row: Row) -> Row:
        """Returns a row with its columns under the names of the fields."""
        if not self.columns:
            return row
        named = {
            name: found
            for name, column in self.columns.items()
            if (found := inner(row, column)) is not ABSENT
        }
        return {name: value for name, value in row.items() if name not in self.columns.values()} | named

    @property
    def local_limits(self) -> Limits:
        """The limits on files that lie here; their test split is read whole: it may hold classes."""
        return {split: most for split, most in self.limits.items() if split != "test"}

    @property
    def num_labels(self) -> int:
        """How many classes there are; 0 where the task is not one of classification."""
        return len(self.label_names)

    @property
    def brought(self) -> bool:
        """Whether the data can only be the user's own."""
        return not self.hub and self.embedded is None and self.given is None


def _gsm8k(row: Row) -> Example:
    answer = text(row, "answer")
    reasoning, marker, value = answer.rpartition("####")
    final = normal_number(value)
    if not marker or final is None:
        raise ValueError(f"field 'answer' must end in '#### ' and a number, but ends in {answer[-40:]!r}")
    # <<48/2=24>> told a calculator what to fill in; a model without one should not learn to write it.
    reasoning = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    return Example(text(row, "question"), f"{reasoning}\n#### {final}".lstrip(), final)


def _svamp(row: Row) -> Example:
    final = number(row, "Answer")
    question = f"{text(row, 'Body')} {text(row, 'Question')}"
    return Example(question, f"{text(row, 'Equation')} = {final}", final, label_of(row, "Type"))


def _multiarith(row: Row) -> Example:
    final = number(row, "final_ans")
    return Example(text(row, "question"), final, final)


def _camel_math(row: Row) -> Example:
    """Reads a dialogue: the solution is prose, so its final number gets a line of its own to be judged by.

    A number to learn must be right: where the solution leaves a doubt, it stands alone and is not judged.
    """
    solution = text(row, "message_2")
    final = stated_number(solution) or ""
    answer = f"{solution}\n#### {final}" if final else solution
    return Example(text(row, "message_1"), answer, final, label_of(row, "sub_topic"))


def _is_algebra(row: Row) -> bool:
    return text(row, "topic;" if "topic;" in row else "topic") == "Algebra"


def _arithmetic(row: Row) -> Example:
    answer = text(row, "answer")
    final = extract_number(answer)
    if final is None:
        raise ValueError(f"field 'answer' must end in a number, but is {answer[-40:]!r}")
    operation = "" if is_missing(row.get("label")) else class_name(row, tuple(arithmetic.SIGNS))
    return Example(text(row, "question"), answer, final, operation)


QUESTION_ANSWER = FORMATS["question_answer"]

_TASKS = (
    Task(
        name="gsm8k",
        hub="openai/gsm8k",
        hub_config="main",
        instruction="Solve the math problem step by step. End with '####' and the result as a number.",
        fields=("question", "answer"),
        to_example=_gsm8k,
    ),
    Task(
        name="camel-ai/math",
        hub="camel-ai/math",
        instruction="Solve the algebra problem and explain each step. End with '####' and the result.",
        fields=("message_1", "message_2", "topic;|topic"),
        to_example=_camel_math,
        keep=_is_algebra,
    ),
    Task(
        name="ChilleD/SVAMP",
        hub="ChilleD/SVAMP",
        instruction="Solve the math problem. Write the equation and what it comes to.",
        fields=("Body", "Question", "Equation", "Answer"),
        to_example=_svamp,
    ),
    Task(
        name="ChilleD/MultiArith",
        hub="ChilleD/MultiArith",
        instruction="Solve the math problem. Answer with the number alone.",
        fields=("question", "final_ans"),
        to_example=_multiarith,
    ),
    Task(
        name="arithmetic",
        instruction="Solve the math problem. Write one calculation per line.",
        fields=("question", "answer"),
        to_example=_arithmetic,
        label_names=tuple(arithmetic.SIGNS),
        embedded=arithmetic.splits,
    ),
    Task(
        name="sst2",
        hub=glue.HUB,
        hub_config="sst2",
        instruction="Tell the sentiment of the sentence. Answer 'negative' or 'positive'.",
        fields=("sentence", "label"),
        to_example=glue.sst2,
        label_names=glue.SENTIMENTS,
    ),
    Task(
        name="qnli",
        hub=glue.HUB,
        hub_config="qnli",
        instruction="Does the sentence answer the question? Answer 'entailment' or 'not_entailment'.",
        fields=("question", "sentence", "label"),
        to_example=glue.qnli,
        label_names=glue.ANSWERS,
    ),
    Task(
        name="mnli",
        hub=glue.HUB,
        hub_config="mnli",
        instruction="Does the hypothesis follow? Answer 'entailment', 'neutral' or 'contradiction'.",
        fields=("premise", "hypothesis", "label"),
        to_example=glue.mnli,
        label_names=glue.INFERENCES,
        split_names=glue.MNLI_SPLITS,
    ),
    Task(
        name="qa",
        instruction=QUESTION_ANSWER.instruction,
        fields=QUESTION_ANSWER.columns,
        to_example=QUESTION_ANSWER.read,
        own=True,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
