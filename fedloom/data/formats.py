"""The forms in which people's own data come, recognised by the names of their columns.

The names are those of TRL (https://huggingface.co/docs/trl/dataset_formats) where TRL has one:

    prompt_completion     prompt, completion: texts, or lists of messages
    messages              messages: role and content; every message of the assistant is learned
    sharegpt              conversations: from and value
    alpaca                instruction, output, and perhaps input and system
    question_answer       question, answer
    text                  text, of which every token is learned
    classification        label, and one column of text or several
    preference            chosen, rejected, and perhaps prompt: texts, or lists of messages
    language_modeling     TRL's name for text and for messages

`fedloom.data.recognise` finds the form, `Format.read` makes an `Example` of a row, or a `Preference`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedloom.data.answers import normal_number
from fedloom.data.example import Example, Preference, Turn
from fedloom.data.fields import NotLearnable, Row, is_missing, label_of, text
from fedloom.data.turns import answers_in, is_talk, read_turns

LONGEST_FINAL = 20
"""Words of an answer that an output is compared with, word by word; a longer one is judged by its loss."""


@dataclass(frozen=True)
class Format:
    """A form of rows.

    Attributes:
        name: As ``--data_format`` takes it.
        columns: Those that it reads; of a classifier's, the texts'.
        read: Makes an example of a row; ValueError where a value is unusable.
        instruction: What the model is told to do, where the rows do not say it.
        optional: Columns that it reads where a row has them.
        learns: Tells whether a row has anything to learn from; one that has not is left out and counted.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Example | Preference]
    instruction: str = ""
    optional: tuple[str, ...] = ()
    learns: Callable[[Row], bool] = lambda row: True


def final_of(answer: str) -> str:
    """What a right answer comes to: the answer, if it is short enough to be written word by word."""
    return answer if len(answer.split()) <= LONGEST_FINAL and "\n" not in answer else ""


def conversation(turns: tuple[Turn, ...], label: str = "") -> Example:
    """Makes an example of a conversation, of which what follows the last answer is left away."""
    last = max(place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learned)
    asked = [turn.text for turn in turns[:last] if turn.role == "user"]
    answer = turns[last].text
    return Example(asked[-1] if asked else "", answer, final_of(answer), label, turns=turns[: last + 1])


def _messages(column: str) -> Callable[[Row], Example]:
    def read(row: Row) -> Example:
        return conversation(_with_instruction(row, read_turns(row, column)), label_of(row))

    return read


def _with_instruction(row: Row, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A conversation behind the system prompt that has a column of its own, where one has."""
    if is_missing(row.get("system")) or turns[0].role == "system":
        return turns
    return (Turn("system", text(row, "system")), *turns)


def _has_answer(column: str) -> Callable[[Row], bool]:
    return lambda row: answers_in(read_turns(row, column)) > 0


def _prompt_completion(row: Row) -> Example:
    if str(row.get("label")).strip().lower() in ("true", "false"):
        raise ValueError(
            "field 'label' is true or false, as of unpaired preferences (TRL's unpaired_preference), which "
            "cannot be learned from here; leave out the rows that are false, and the column"
        )
    if is_talk(row.get("prompt")) or is_talk(row.get("completion")):
        prompt, answer = _side(row, "prompt", "user"), _side(row, "completion", "assistant")
        # Only the completion is learned, also where the prompt is a conversation with answers of its own.
        turns = (*(turn._replace(learned=turn.role != "assistant") for turn in prompt), *answer)
        if not answers_in(turns):
            raise ValueError("field 'completion' has no message of the assistant")
        return conversation(_with_instruction(row, turns), label_of(row))
    prompt_text, answer_text = text(row, "prompt"), text(row, "completion")
    return _asked(row, prompt_text, answer_text, final_of(answer_text))


def _asked(row: Row, question: str, answer: str, final: str) -> Example:
    """A question and its answer; with a system prompt of its own it is a conversation."""
    if is_missing(row.get("system")):
        return Example(question, answer, final, label_of(row))
    turns = _with_instruction(row, (Turn("user", question), Turn("assistant", answer)))
    return Example(question, answer, final, label_of(row), turns=turns)


def _side(row: Row, field: str, role: str) -> tuple[Turn, ...]:
    """A field that is messages, or a text as one message."""
    if is_talk(row.get(field)):
        return read_turns(row, field)
    return (Turn("user" if role == "user" else "assistant", text(row, field)),)


def _alpaca(row: Row) -> Example:
    question = text(row, "instruction")
    if not is_missing(row.get("input")):
        question += f"\n\n{text(row, 'input')}"
    turns = (Turn("user", question), Turn("assistant", text(row, "output")))
    return conversation(_with_instruction(row, turns), label_of(row))


def _question_answer(row: Row) -> Example:
    """Reads a question and an answer of any kind, and a label to divide clients by, where there is one."""
    answer = text(row, "answer")
    return _asked(row, text(row, "question"), answer, answer)


def _text(row: Row) -> Example:
    return Example("", text(row, "text"), "", label_of(row), whole=True)


def preference(row: Row) -> Preference:
    """Reads a preference: what both answers begin with is the prompt, where no column has it."""
    sides = [_transcript(row.get(field)) for field in ("chosen", "rejected")]
    written = all(sides) and is_missing(row.get("prompt"))
    chosen, rejected = sides if written else (_side(row, f, "assistant") for f in ("chosen", "rejected"))
    prompt = () if is_missing(row.get("prompt")) else _side(row, "prompt", "user")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    common, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    # UltraFeedback and others repeat the conversation in both answers, and its question beside.
    prompt = common if common and common[0].role != "assistant" else (*prompt, *common)
    if not chosen or not rejected:
        raise NotLearnable("fields 'chosen' and 'rejected' are the same")
    if not prompt:
        raise ValueError(
            "fields 'chosen' and 'rejected' are without a prompt; say which column has it, as in --columns "
            "prompt=question, or leave the row out"
        )
    if not answers_in(chosen) or not answers_in(rejected):
        raise ValueError("fields 'chosen' and 'rejected' must each have an answer of the assistant")
    texts = not any(is_talk(row.get(field)) for field in ("prompt", "chosen", "rejected"))
    texts = texts and not written and is_missing(row.get("system"))
    return Preference(_with_instruction(row, prompt), chosen, rejected, label_of(row), texts)


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _transcript(value: object) -> tuple[Turn, ...]:
    """A conversation in one text, as Anthropic's HH-RLHF has it; () of any other."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return ()
    _, *said = _SPEAKER.split(value.strip())
    turns = [(said[at], said[at + 1].strip()) for at in range(0, len(said), 2)]
    if not all(spoken for _, spoken in turns):
        raise NotLearnable("fields 'chosen' and 'rejected' have somebody say nothing")
    return tuple(Turn("user" if who == "Human" else "assistant", spoken) for who, spoken in turns)


def label_text(row: Row) -> str:
    """Returns the name of a row's class: a text, or a whole number as its digits.

    Raises:
        ValueError: If it is missing, -1 (which stands for no label), or no class.
    """
    value = row.get("label")
    if isinstance(value, bool):
        return str(value)
    if is_missing(value):
        raise ValueError("field 'label' is empty, and a class is needed")
    name = label_of(row, "label")
    number = normal_number(value)
    if number is not None and ("." in number or number.startswith("-")):
        raise ValueError(f"field 'label' is {number}, which is no class; classes are whole numbers or names")
    return name if number is None else number


def classification(columns: Sequence[str]) -> Format:
    """The form of labelled texts.

    Args:
        columns: Of the texts: one; two, which a classifier reads as a pair; or more, which it reads as one.
    """

    def read(row: Row) -> Example:
        label, texts = label_text(row), [text(row, column) for column in columns]
        question = texts[0]
        if len(texts) > 1:
            question = "\n".join(
                f"{column.replace('_', ' ').capitalize()}: {own}"
                for column, own in zip(columns, texts, strict=True)
            )
        return Example(question, label, label, label, (texts[0], texts[1]) if len(texts) == 2 else None)

    return Format("classification", tuple(columns), read, "Classify the text. Answer with its label alone.")


FORMATS = {
    form.name: form
    for form in (
        Format("preference", ("chosen", "rejected"), preference, optional=("prompt", "system")),
        Format(
            "messages",
            ("messages",),
            _messages("messages"),
            optional=("system",),
            learns=_has_answer("messages"),
        ),
        Format(
            "sharegpt",
            ("conversations",),
            _messages("conversations"),
            optional=("system",),
            learns=_has_answer("conversations"),
        ),
        Format("prompt_completion", ("prompt", "completion"), _prompt_completion, optional=("system",)),
        Format("alpaca", ("instruction", "output"), _alpaca, optional=("input", "system")),
        Format(
            "question_answer", ("question", "answer"), _question_answer, "Answer the question.", ("system",)
        ),
        Format("text", ("text",), _text),
    )
}
"""All forms but classification, in the order in which they are looked for."""
