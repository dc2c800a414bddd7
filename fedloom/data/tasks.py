"""The data sets: what their rows look like, and how a row becomes a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedloom.data import arithmetic, glue
from fedloom.data.answers import extract_number, normal_number
from fedloom.data.example import Example, Splits
from fedloom.data.files import SPLIT_NAMES, SplitNames

__all__ = ["TASKS", "Example", "Splits", "Task"]

Row = Mapping[str, Any]


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
        keep: Tells whether the row belongs to the task.
        label_names: The classes, by number; examples are labelled with these names. Empty where the task is
            not one of classification.
        split_names: The names that each split may have, in order of preference.
        embedded: Makes the data from a seed, where the package does.
    """

    name: str
    hub: str
    hub_config: str | None
    instruction: str
    fields: tuple[str, ...]
    to_example: Callable[[Row], Example]
    keep: Callable[[Row], bool] = keep_all
    label_names: tuple[str, ...] = ()
    split_names: SplitNames = field(default_factory=lambda: SPLIT_NAMES)
    embedded: Callable[[int], Splits] | None = None

    @property
    def num_labels(self) -> int:
        """How many classes there are; 0 where the task is not one of classification."""
        return len(self.label_names)

    @property
    def brought(self) -> bool:
        """Whether the data can only be the user's own."""
        return not self.hub and self.embedded is None


def _number(row: Row, field: str) -> str:
    number = normal_number(row[field])
    if number is None:
        raise ValueError(f"field '{field}' must be a number, but is {row[field]!r}")
    return number


def _gsm8k(row: Row) -> Example:
    reasoning, marker, value = str(row["answer"]).rpartition("####")
    final = normal_number(value)
    if not marker or final is None:
        raise ValueError(
            f"field 'answer' must end in '#### ' and a number, but ends in {str(row['answer'])[-40:]!r}"
        )
    # <<48/2=24>> told a calculator what to fill in; a model without one should not learn to write it.
    reasoning = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    return Example(str(row["question"]).strip(), f"{reasoning}\n#### {final}".lstrip(), final)


def _svamp(row: Row) -> Example:
    final = _number(row, "Answer")
    question = f"{str(row['Body']).strip()} {str(row['Question']).strip()}"
    return Example(question, f"{str(row['Equation']).strip()} = {final}", final, str(row.get("Type") or ""))


def _multiarith(row: Row) -> Example:
    final = _number(row, "final_ans")
    return Example(str(row["question"]).strip(), final, final)


def _camel_math(row: Row) -> Example:
    """Reads a dialogue: the solution is prose, so its final number gets a line of its own to be judged by."""
    solution = str(row["message_2"]).strip()
    boxed = solution.rpartition("\\boxed{")
    final = extract_number(_braced(boxed[2]) if boxed[1] else solution) or ""
    answer = f"{solution}\n#### {final}" if final else solution
    return Example(str(row["message_1"]).strip(), answer, final, str(row.get("sub_topic") or ""))


def _braced(text: str) -> str:
    """Returns `text` up to the brace that closes one opened before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text


def _is_algebra(row: Row) -> bool:
    return str(row.get("topic;", row.get("topic"))).strip() == "Algebra"


def _arithmetic(row: Row) -> Example:
    answer = str(row["answer"]).strip()
    final = extract_number(answer)
    if final is None:
        raise ValueError(f"field 'answer' must end in a number, but is {answer[-40:]!r}")
    label = str(row.get("label") or "")
    if label and label not in arithmetic.SIGNS:
        raise ValueError(f"field 'label' must be one of {', '.join(arithmetic.SIGNS)}, but is {label!r}")
    return Example(str(row["question"]).strip(), answer, final, label)


def _qa(row: Row) -> Example:
    """Reads a question and an answer of any kind, and a label to divide clients by, where there is one."""
    for name in ("question", "answer"):
        if not isinstance(row[name], str | int | float):
            raise ValueError(f"field '{name}' must be text or a number, but is {str(row[name])[:40]!r}")
    answer = str(row["answer"]).strip()
    label = str(row.get("label") or "")
    return Example(str(row["question"]).strip(), answer, extract_number(answer) or "", label)


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
        hub_config=None,
        instruction="Solve the algebra problem and explain each step. End with '####' and the result.",
        fields=("message_1", "message_2", "topic;|topic"),
        to_example=_camel_math,
        keep=_is_algebra,
    ),
    Task(
        name="ChilleD/SVAMP",
        hub="ChilleD/SVAMP",
        hub_config=None,
        instruction="Solve the math problem. Write the equation and what it comes to.",
        fields=("Body", "Question", "Equation", "Answer"),
        to_example=_svamp,
    ),
    Task(
        name="ChilleD/MultiArith",
        hub="ChilleD/MultiArith",
        hub_config=None,
        instruction="Solve the math problem. Answer with the number alone.",
        fields=("question", "final_ans"),
        to_example=_multiarith,
    ),
    Task(
        name="arithmetic",
        hub="",
        hub_config=None,
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
        hub="",
        hub_config=None,
        instruction="Answer the question.",
        fields=("question", "answer"),
        to_example=_qa,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
