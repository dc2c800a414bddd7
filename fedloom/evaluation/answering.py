"""Problems that adapters answer in their own words, judged by the final number, or by the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.answers import extract_number, same_answer
from fedloom.data.conversations import special_tokens
from fedloom.data.encode import Tokens
from fedloom.errors import UserError
from fedloom.evaluation.generate import generate
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.model.structure import positions_of
from fedloom.runtimes.group import Group

BATCH_SIZE = 16
"""Prompts per pass and adapter, where nobody says otherwise."""


@dataclass(frozen=True)
class Questions:
    """What an adapter is asked.

    Attributes:
        prompts: Token ids of the prompts.
        expected: What each right answer comes to: `Example.final`.
        max_new_tokens: Longest answer, in tokens.
        end: The token that ends an answer in training; `ends_of_answer` adds the model's own.
    """

    prompts: Sequence[Sequence[int]]
    expected: Sequence[str]
    max_new_tokens: int
    end: int


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


def questions_of(sequences: Sequence[Tokens], limit: int, end: int) -> Questions:
    """The first problems of encoded ones whose answers can be judged.

    An answer may be twice as long as the longest that is given.

    Args:
        sequences: Prompts with their answers; of a conversation the last answer is asked for.
        limit: How many problems at most.
        end: The token that ends an answer.

    Raises:
        UserError: No answer can be judged.
    """
    chosen = [s for s in sequences if s.final][:limit]
    if not chosen:
        raise UserError(
            "eval_generate_every: no answer of the validation data has a number to compare with; leave it out"
        )
    return Questions(
        prompts=[s.ids[: s.spans[-1][0]] for s in chosen],
        expected=[s.final for s in chosen],
        max_new_tokens=2 * max(end - first for s in chosen for first, end in s.spans[-1:]),
        end=end,
    )


def ends_of_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, taught: int) -> frozenset[int]:
    """The tokens at which an answer ends in generation: the one that training teaches, and the model's own.

    These are the ids of its ``generation_config``, as transformers' ``generate`` takes them (Llama 3, Gemma
    and Qwen have two or three), and those of its configuration that are no ordinary text to the tokenizer.

    Args:
        model: The base.
        tokenizer: The model's.
        taught: `PromptFormat.end`.
    """
    special = special_tokens(tokenizer)
    configured = _ids(getattr(model.config.get_text_config(), "eos_token_id", None))
    of_model = _ids(getattr(model.generation_config, "eos_token_id", None))
    return frozenset({taught, *of_model, *(number for number in configured if number in special)})


def _ids(given: int | Sequence[int] | None) -> Sequence[int]:
    return () if given is None else (given,) if isinstance(given, int) else given


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
    frozen: Row | None = None,
    ranks: Sequence[int] | None = None,
) -> list[Answers]:
    """Let adapters answer, greedily, many in one pass, and compare with what was expected.

    Args:
        model: The frozen base with stacked adapters.
        bank: The adapters; with no tensors, the base itself answers.
        tokenizer: The model's.
        questions: For each adapter what it is asked.
        batch_size: Prompts per pass and adapter.
        frozen: Adapter parameters that are the same for all and not in the bank.
        ranks: Each adapter's LoRA rank; None: all have the model's own.
    """
    (taught,) = {asked.end for asked in questions}
    written = generate(
        model,
        bank,
        [asked.prompts for asked in questions],
        ends=ends_of_answer(model.model, tokenizer, taught),
        max_new_tokens=max(asked.max_new_tokens for asked in questions),
        batch_size=batch_size,
        frozen=frozen,
        ranks=ranks,
    )
    return [
        _scored(tokenizer.batch_decode(texts, skip_special_tokens=True), asked.expected)
        for texts, asked in zip(written, questions, strict=True)
    ]


def answer_accuracy(
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
    share = replace(questions, prompts=questions.prompts[some], expected=questions.expected[some])
    right = 0
    if share.prompts:
        (answers,) = answer(model, AdapterBank.repeat(row, 1), tokenizer, [share])
        right = sum(answers.right)
    return sum(group.gather(right)) / len(questions.prompts)


def _scored(texts: list[str], expected: Sequence[str]) -> Answers:
    right = [same_answer(wanted, text) for wanted, text in zip(expected, texts, strict=True)]
    return Answers(texts, [extract_number(text) for text in texts], right)
