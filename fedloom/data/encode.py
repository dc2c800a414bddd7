"""From problems to token ids."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedloom.data.example import Example
from fedloom.data.templates import PromptFormat, special_tokens
from fedloom.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """One sequence.

    Attributes:
        ids: Token ids: of the prompt, then of the answer and the token that ends it.
        answer_start: Where the answer begins: the loss counts ``ids[answer_start:]``. For classification
            there is no answer, and it is ``len(ids)``.
        label: The class of the sequence, for classification; -1 for language modelling.
        segment_start: Where the second text begins whose tokens have ``token_type_ids`` of 1; None where the
            tokenizer makes no such difference.
        kind: `Example.label`, for those who count what a client holds; training does not look at it.
        final: `Example.final`, for those who judge what a model answers itself; nor at this.
    """

    ids: list[int]
    answer_start: int
    label: int
    segment_start: int | None = None
    kind: str = ""
    final: str = ""


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    max_length: int,
) -> tuple[list[Tokens], int]:
    """Tokenises problems for training a language model on their answers.

    Args:
        examples: The problems.
        tokenizer: The model's tokenizer.
        form: How a question is put to the model.
        max_length: The most tokens that a sequence may have, prompt and end token included.

    Returns:
        The sequences in the order of the examples, without those that are too long, and how many those were.

    Raises:
        UserError: If no sequence is left.
    """
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
        answer = whole[len(ids) :] if joins else _tokenise([text], tokenizer)[0]
        length = len(ids) + len(answer) + 1
        shortest = min(shortest or length, length)
        if length <= max_length:
            ids_and_end = [*ids, *answer, form.end]
            kept.append(Tokens(ids_and_end, len(ids), -1, kind=example.label, final=example.final))
    if not kept:
        raise UserError(
            f"max_length is {max_length}, and none of the {len(examples)} examples is that short "
            f"(prompt and answer; the shortest has {shortest} tokens). Use a larger --max_length."
        )
    return kept, len(examples) - len(kept)


def reading(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> str:
    """Returns a short name of how problems are read: equal where a made-up one becomes the same token ids."""
    problem = Example("What is 1 + 1?", "1 + 1 = 2", "2")
    (tokens,), _ = encode([problem], tokenizer, form, max_length=sys.maxsize)
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenises rendered prompts, each with the beginning-of-text token exactly once if the model has one."""
    lead = _leading_ids(tokenizer)
    bos = tokenizer.bos_token
    rows = _tokenise(prompts, tokenizer)
    return [
        ids if bos and prompt.startswith(bos) else [*lead, *ids]
        for prompt, ids in zip(prompts, rows, strict=True)
    ]


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns what the tokenizer puts before a text.

    What it may put behind (an end token) does not belong at the end of a prompt.
    """
    plain = tokenizer("a", add_special_tokens=False).input_ids
    special = tokenizer("a").input_ids
    starts = (place for place in range(len(special)) if special[place : place + len(plain)] == plain)
    return list(special[: next(starts, 0)])


def _tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: texts beyond the model's length are no surprise here, they are dropped and counted.
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return rows


def _gap(prompt: str, prompt_ids: Sequence[int], special: set[int]) -> str:
    """Returns what goes between prompt and answer: a space, unless they are apart already."""
    return "" if prompt[-1:].isspace() or prompt_ids[-1] in special else " "
