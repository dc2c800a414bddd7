"""Problems that adapters answer in their own words, judged by the final number, or by the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.config import UserError
from fedloom.data.answers import extract_number, same_answer
from fedloom.data.encode import Tokens
from fedloom.data.templates import end_of_answer
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.model.structure import positions_of
from fedloom.observe.generate import generate
from fedloom.runtimes.group import Group

BATCH_SIZE = 16
"""Prompts per pass and adapter, where nobody says otherwise."""


@dataclass(frozen=True)
class Questions:
    """What an adapter is asked.

    Attributes:
        prompts: Token ids of the prompts.
        expected: The final number of each right answer; the whole of one that has none.
        max_new_tokens: Longest answer, in tokens.
    """

    prompts: Sequence[Sequence[int]]
    expected: Sequence[str]
    max_new_tokens: int


@dataclass(frozen=True)
class Answers:
    """What an adapter wrote.

    Attributes:
        texts: The output per prompt.
        numbers: The final number of each output; None where there is none.
        right: Whether it answers as expected; see `same_answer`.
    """

    texts: list[str]
    numbers: list[str | None]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def questions_of(
    sequences: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase, limit: int, *, texts: bool
) -> Questions:
    """The first problems of encoded ones.

    An answer may be twice as long as the longest that is given.

    Args:
        sequences: Prompts with their answers.
        tokenizer: The model's.
        limit: How many problems at most.
        texts: An answer without a number counts, too, by its text; else its problem is left out.

    Raises:
        UserError: No answer has a number.
    """
    given = [s.ids[s.answer_start :] for s in sequences]
    answers = tokenizer.batch_decode(given, skip_special_tokens=True)
    finals = [extract_number(text) or (text if texts else "") for text in answers]
    chosen = [i for i, final in enumerate(finals) if final][:limit]
    if not chosen:
        raise UserError(
            "eval_generate_every: no answer of the validation data has a number to compare with; leave it out"
        )
    return Questions(
        prompts=[sequences[i].ids[: sequences[i].answer_start] for i in chosen],
        expected=[finals[i] for i in chosen],
        max_new_tokens=2 * max(len(given[i]) for i in chosen),
    )


def within_room(questions: Questions, model: PreTrainedModel, virtual: int = 0) -> Questions:
    """The same questions, with answers no longer than the model has positions for behind the longest prompt.

    Args:
        questions: Of which each prompt leaves room for an answer.
        model: Its weights are not looked at.
        virtual: Virtual tokens before each prompt.
    """
    positions = positions_of(model)
    if positions is None:
        return questions
    room = positions - virtual - max(map(len, questions.prompts))
    return replace(questions, max_new_tokens=min(questions.max_new_tokens, max(room, 1)))


def answer(
    model: StackedModel,
    bank: AdapterBank,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Questions],
    *,
    batch_size: int = BATCH_SIZE,
    used: Row | None = None,
) -> list[Answers]:
    """Let adapters answer, greedily, many in one pass, and compare with what was expected.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters; with no tensors, the base itself answers.
        tokenizer: The model's.
        questions: For each adapter what it is asked.
        batch_size: Prompts per pass and adapter.
        used: Adapter parameters that are the same for all and not in the bank.
    """
    written = generate(
        model,
        bank,
        [own.prompts for own in questions],
        end=end_of_answer(tokenizer),
        max_new_tokens=max(own.max_new_tokens for own in questions),
        batch_size=batch_size,
        used=used,
    )
    return [
        _judged(tokenizer.batch_decode(texts, skip_special_tokens=True), own.expected)
        for texts, own in zip(written, questions, strict=True)
    ]


def share_right(
    model: StackedModel, row: Row, tokenizer: PreTrainedTokenizerBase, questions: Questions, group: Group
) -> float:
    """Share of right answers of one adapter; each process of a group answers some of the questions.

    Args:
        model: The frozen base with stacked adapters.
        row: The adapter, the same everywhere.
        tokenizer: The model's.
        questions: What it is asked.
        group: The run's processes.
    """
    some = slice(group.rank, None, group.size)
    own = replace(questions, prompts=questions.prompts[some], expected=questions.expected[some])
    right = 0
    if own.prompts:
        (answers,) = answer(model, AdapterBank.repeat(row, 1), tokenizer, [own])
        right = sum(answers.right)
    return sum(group.gather(right)) / len(questions.prompts)


def _judged(texts: list[str], expected: Sequence[str]) -> Answers:
    right = [same_answer(wanted, text) for wanted, text in zip(expected, texts, strict=True)]
    return Answers(texts, [extract_number(text) for text in texts], right)
