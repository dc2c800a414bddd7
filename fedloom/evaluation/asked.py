"""The examples to judge by, as a model reads them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fedloom.data.encode import Tokens, encode, prompt_of
from fedloom.data.encode_classes import encode_classes
from fedloom.data.example import Example
from fedloom.data.templates import PromptFormat, prompt_format
from fedloom.data.token_ids import encode_prompts
from fedloom.evaluation.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The examples to judge by.

    Attributes:
        examples: As the data set has them.
        texts: What the model reads of each.
        prompts: Token ids of the texts, where the model writes answers.
        form: How a question is put to it there.
        sequences: Encoded texts, where it predicts classes, or examples, where they are judged by their loss.
    """

    examples: list[Example]
    texts: list[str]
    prompts: list[list[int]]
    form: PromptFormat | None
    sequences: list[Tokens]


def asked_of(
    plan: Plan, examples: list[Example], tokenizer: PreTrainedTokenizerBase, room: int | None
) -> Asked:
    """Encode examples.

    Args:
        plan: How they are judged.
        examples: As the data set has them.
        tokenizer: The model's.
        room: The most tokens that the model reads; None: nobody knows.
    """
    if plan.classify:
        longest = plan.max_length if room is None else min(plan.max_length, room)
        sequences, _ = encode_classes(examples, tokenizer, plan.classes, longest)
        texts = ["\n".join(example.pair or (example.question,)) for example in examples]
        return Asked(examples, texts, [], None, sequences)
    form = prompt_format(tokenizer, plan.instruction, plan.prompt_format, plan.prompt_date)
    if not all(example.final for example in examples):
        longest = plan.max_length if room is None else min(plan.max_length, room)
        sequences, left_out = encode(examples, tokenizer, form, longest)
        if left_out:
            log.warning(
                "%d of %d examples are longer than %d tokens and left out", left_out, len(examples), longest
            )
        return Asked(examples, [], [], form, sequences)
    texts = [prompt_of(example, form) for example in examples]
    return Asked(examples, texts, encode_prompts(texts, tokenizer), form, [])
