"""From labelled texts, or pairs of texts, to the token ids that a sequence classifier reads."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedloom.data.encode import Tokens
from fedloom.data.example import Example
from fedloom.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_classes(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    max_length: int,
) -> tuple[list[Tokens], int]:
    """Tokenises examples for a sequence classifier, with the special tokens that its tokenizer puts there.

    Args:
        examples: All with a pair of texts, or all with a text (the question) alone.
        tokenizer: The model's tokenizer.
        label_names: The classes by number; an example's label is one of these names.
        max_length: The most tokens that a sequence may have; a smaller limit of the tokenizer's own holds.
            Longer texts are cut as the tokenizer does it, of a pair the longer text first.

    Returns:
        The sequences in the order of the examples, and how many of them were cut.

    Raises:
        UserError: If an example's label is not one of the names, a text has no tokens, or `max_length` leaves
            no room for a text.
    """
    limit = min(max_length, tokenizer.model_max_length)
    numbers = {name: number for number, name in enumerate(label_names)}
    for example in examples:
        if example.label not in numbers:
            raise UserError(
                f"the example {example.question[:60]!r} has the label {example.label!r}; to classify, every "
                f"example needs one of {', '.join(label_names)}."
            )
    texts = [example.pair or (example.question,) for example in examples]
    special = tokenizer.num_special_tokens_to_add(pair=len(texts[0]) == 2)
    if limit <= special:
        raise UserError(
            f"max_length is {max_length}, but {special} special tokens stand around each text. Use a larger "
            "--max_length."
        )
    rows = _classifier_rows(texts, tokenizer)
    long = [place for place, (ids, _) in enumerate(rows) if len(ids) > limit]
    if long:
        short = _classifier_rows([texts[place] for place in long], tokenizer, limit)
        for place, row in zip(long, short, strict=True):
            rows[place] = row
    empty = next((place for place, (ids, _) in enumerate(rows) if not ids), None)
    if empty is not None:
        raise UserError(
            f"the model's tokenizer makes no token of the text {examples[empty].question[:60]!r}; leave that "
            "example out."
        )
    sequences = [
        Tokens(ids, len(ids), numbers[example.label], second, kind=example.label)
        for example, (ids, second) in zip(examples, rows, strict=True)
    ]
    return sequences, len(long)


def class_reading(tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> str:
    """Returns a short name of how texts are classified: of a made-up one's token ids, and of the classes."""
    examples = [Example("It is so.", "", "", name) for name in sorted(label_names)]
    made, _ = encode_classes(examples, tokenizer, label_names, max_length=sys.maxsize)
    return hashlib.sha256(repr(made).encode()).hexdigest()[:16]


def _classifier_rows(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> list[tuple[list[int], int | None]]:
    """Token ids of texts, or of pairs of texts, and where each pair's second text begins."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    made = tokenizer(
        *columns, truncation=limit is not None, max_length=limit, return_attention_mask=False, verbose=False
    )
    types = made.get("token_type_ids") or [[]] * len(texts)
    return [(list(ids), _second_segment(row)) for ids, row in zip(made.input_ids, types, strict=True)]


def _second_segment(types: Sequence[int]) -> int | None:
    """Returns where ``token_type_ids`` go from 0 to 1, if they do so and stay there."""
    start = list(types).index(1) if 1 in types else 0
    return start if start and list(types) == [0] * start + [1] * (len(types) - start) else None
