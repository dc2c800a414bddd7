"""From problems to token ids."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from fedloom.data.conversations import special_tokens
from fedloom.data.example import Example
from fedloom.data.templates import PromptFormat, end_of_text
from fedloom.data.token_ids import encode_pieces, encode_prompts, tokenise
from fedloom.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """One sequence.

    Attributes:
        ids: Token ids: of the prompt, then of the answer and the token that ends it.
        answer_start: Where the first token that counts in the loss stands. For classification there is no
            answer, and it is ``len(ids)``.
        label: The class of the sequence, for classification; -1 for language modelling.
        segment_start: Where the second text begins whose tokens have ``token_type_ids`` of 1; None where the
            tokenizer makes no such difference.
        kind: `Example.label`, for those who count what a client holds; training does not look at it.
        final: `Example.final`, for those who judge what a model answers itself; nor at this.
        answers: Where each answer of a conversation begins and ends, in order; () where there is one, which
            lasts to the end.
        rejected: The answer that the first one was preferred to, behind the same prompt, where what is
            learned is a preference; else None.
        reference: Of a preference: by how much more likely the frozen base holds the preferred answer to be,
            as a difference of logarithms; None until
            `fedloom.evaluation.reference` has looked.
    """

    ids: list[int]
    answer_start: int
    label: int
    segment_start: int | None = None
    kind: str = ""
    final: str = ""
    answers: tuple[tuple[int, int], ...] = ()
    rejected: Tokens | None = None
    reference: float | None = None

    @property
    def sides(self) -> tuple[Tokens, ...]:
        """The sequences that go through the model: this one, and of a preference the rejected one."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """What counts in the loss: ``ids[start:end]`` of each span, which the tokens before it predict."""
        return self.answers or ((self.answer_start, len(self.ids)),)


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    max_length: int,
) -> tuple[list[Tokens], int]:
    """Tokenises examples for training a language model on their answers.

    A problem that is too long is left out, and so is a preference either answer of which is. Of a
    conversation the beginning stays, up to the last answer that is in it as a whole; a text is cut.

    Args:
        examples: The problems; preferences are by themselves.
        tokenizer: The model's tokenizer.
        form: How a question is put to the model.
        max_length: The most tokens that a sequence may have, prompt and end token included.

    Returns:
        The sequences in the order of the examples, without those that are too long, and how many those were.
        How many were cut is told in the log.

    Raises:
        UserError: If no sequence is left.
    """
    if any(example.rejected for example in examples):
        return _encode_preferences(examples, tokenizer, form, max_length)
    if any(example.turns or example.whole for example in examples):
        return _encode_each(examples, tokenizer, form, max_length)
    prompts = [form.render(example.question) for example in examples]
    prompt_ids = encode_prompts(prompts, tokenizer)
    special = special_tokens(tokenizer)
    texts = [
        _gap(prompt, ids, special) + example.answer
        for prompt, ids, example in zip(prompts, prompt_ids, examples, strict=True)
    ]
    whole_ids = encode_prompts(
        [prompt + text for prompt, text in zip(prompts, texts, strict=True)], tokenizer
    )
    kept = []
    shortest = 0
    for example, ids, text, whole in zip(examples, prompt_ids, texts, whole_ids, strict=True):
        # Generation starts from the prompt's own tokens, so training must too. The answer then is the rest of
        # the whole text's tokens, unless a token of these lies across the border: then it is tokenised alone.
        joins = whole[: len(ids)] == ids
        answer = whole[len(ids) :] if joins else tokenise([text], tokenizer)[0]
        length = len(ids) + len(answer) + 1
        shortest = min(shortest or length, length)
        if length <= max_length:
            ids_and_end = [*ids, *answer, form.end]
            kept.append(Tokens(ids_and_end, len(ids), -1, kind=example.label, final=example.final))
    if not kept:
        raise _too_long(max_length, len(examples), shortest)
    return kept, len(examples) - len(kept)


def _too_long(max_length: int, count: int, shortest: int) -> UserError:
    return UserError(
        f"max_length is {max_length}, and none of the {count} examples is that short "
        f"(prompt and answer; the shortest has {shortest} tokens). Use a larger --max_length."
    )


def _encode_each(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: PromptFormat, max_length: int
) -> tuple[list[Tokens], int]:
    """As `encode`, of examples among which are conversations or texts."""
    kept: list[Tokens] = []
    cut, shortest = 0, 0
    for example, whole in zip(examples, _read(examples, tokenizer, form), strict=True):
        least = (
            whole.spans[0][1]
            if example.turns
            else min(2, len(whole.ids))
            if example.whole
            else len(whole.ids)
        )
        shortest = min(shortest or least, least)
        if least > max_length:
            continue
        cut += len(whole.ids) > max_length
        kept.append(_within(whole, max_length))
    if cut:
        log.warning(
            "%d of %d conversations or texts are longer than max_length %d and cut: conversations behind the "
            "last whole answer, texts there",
            cut,
            len(examples),
            max_length,
        )
    if not kept:
        raise _too_long(max_length, len(examples), shortest)
    return kept, len(examples) - len(kept)


def _encode_preferences(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: PromptFormat, max_length: int
) -> tuple[list[Tokens], int]:
    """As `encode`, of preferences."""
    chosen_ones = [replace(one, rejected=()) for one in examples]
    rejected_ones = [
        replace(one, answer=one.rejected[-1].text, turns=one.rejected if one.turns else (), rejected=())
        for one in examples
    ]
    sides = zip(*(_read(ones, tokenizer, form) for ones in (chosen_ones, rejected_ones)), strict=True)
    kept = []
    shortest = 0
    for chosen, rejected in sides:
        length = max(len(chosen.ids), len(rejected.ids))
        shortest = min(shortest or length, length)
        if length <= max_length:
            kept.append(chosen._replace(rejected=rejected))
    if not kept:
        raise _too_long(max_length, len(examples), shortest)
    return kept, len(examples) - len(kept)


def _within(tokens: Tokens, max_length: int) -> Tokens:
    """The beginning of a sequence, whole answers alone; of a text as many tokens as may be."""
    if len(tokens.ids) <= max_length:
        return tokens
    if not tokens.answers:
        return tokens._replace(ids=tokens.ids[:max_length])
    answers = tuple(span for span in tokens.answers if span[1] <= max_length)
    # Only the whole conversation ends in the answer that can be judged.
    return tokens._replace(ids=tokens.ids[: answers[-1][1]], answers=answers, final="")


def _read(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, form: PromptFormat
) -> list[Tokens]:
    """The examples as sequences of any length."""
    talks = iter(encode_pieces([form.pieces(one.turns) for one in examples if one.turns], tokenizer))
    texts = iter(encode_prompts([one.answer for one in examples if one.whole], tokenizer))
    problems = [one for one in examples if not one.turns and not one.whole]
    others = iter(encode(problems, tokenizer, form, sys.maxsize)[0] if problems else [])
    made = []
    for one in examples:
        if one.turns:
            ids, spans = next(talks)
            ids = ids[: spans[-1][1]]  # what stands behind the last answer trains nothing
            first = spans[0][0]
            made.append(Tokens(ids, first, -1, kind=one.label, final=one.final, answers=tuple(spans)))
        elif one.whole:
            # Nothing predicts the first token.
            made.append(Tokens([*next(texts), end_of_text(tokenizer)], 1, -1, kind=one.label))
        else:
            made.append(next(others))
    return made


def prompt_of(example: Example, form: PromptFormat) -> str:
    """Returns what a model reads before the answer; of a conversation, all before its last answer."""
    if not example.turns:
        return form.render(example.question)
    pieces = form.pieces(example.turns)
    last = max(place for place, piece in enumerate(pieces) if piece.learned)
    return "".join(piece.text for piece in pieces[:last])


def reading(tokenizer: PreTrainedTokenizerBase, form: PromptFormat, read: Iterable[Tokens]) -> str:
    """Returns a short name of how problems are read.

    It is equal where a made-up one becomes the same token ids, and both learn answers, or preferences.

    Args:
        tokenizer: The model's.
        form: How a question is put to it.
        read: What is learned.
    """
    problem = Example("What is 1 + 1?", "1 + 1 = 2", "2")
    (tokens,), _ = encode([problem], tokenizer, form, max_length=sys.maxsize)
    kind = "preferences" if any(each.rejected is not None for each in read) else ""
    return hashlib.sha256((repr(tokens) + kind).encode()).hexdigest()[:16]


def _gap(prompt: str, prompt_ids: Sequence[int], special: set[int]) -> str:
    """Returns what goes between prompt and answer: a space, unless they are apart already."""
    return "" if prompt[-1:].isspace() or prompt_ids[-1] in special else " "
