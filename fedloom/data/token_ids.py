"""From rendered prompts, texts and pieces of them to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedloom.data.conversations import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_pieces(
    talks: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Tokenises conversations, and finds the tokens of each piece that is learned.

    What stands before an answer becomes the tokens that generation would begin from. Where a token of the
    whole text lies across the border of a piece, the piece is tokenised alone.

    Args:
        talks: See `PromptFormat.pieces`.
        tokenizer: The model's tokenizer.

    Returns:
        For each conversation its token ids, and where each learned piece begins and ends in them.
    """
    if not talks:
        return []
    alone = iter(tokenise([piece.text for pieces in talks for piece in pieces], tokenizer))
    wholes = encode_prompts(["".join(piece.text for piece in pieces) for pieces in talks], tokenizer)
    made = []
    for pieces, whole in zip(talks, wholes, strict=True):
        ids_alone = [next(alone) for _ in pieces]
        done = len(whole) - sum(map(len, ids_alone))
        if done < 0 or whole[done:] != [number for ids in ids_alone for number in ids]:
            # Tokens differ where pieces meet: each beginning of the text by itself, as far as these agree.
            made.append(_piece_by_piece(pieces, ids_alone, tokenizer))
            continue
        spans = []
        for piece, ids in zip(pieces, ids_alone, strict=True):
            if piece.learned:
                spans.append((done, done + len(ids)))
            done += len(ids)
        made.append((whole, spans))
    return made


def _piece_by_piece(
    pieces: Sequence[Piece], ids_alone: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    spans = []
    texts = ["".join(piece.text for piece in pieces[: count + 1]) for count in range(len(pieces))]
    for piece, alone, beginning in zip(pieces, ids_alone, encode_prompts(texts, tokenizer), strict=True):
        first = len(ids)
        ids = beginning if beginning[:first] == ids else [*ids, *alone]
        if piece.learned:
            spans.append((first, len(ids)))
    return ids, spans


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenises rendered prompts, each with the beginning-of-text token exactly once if the model has one."""
    lead = _leading_ids(tokenizer)
    bos = tokenizer.bos_token
    rows = tokenise(prompts, tokenizer)
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


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenises texts with nothing before or behind them."""
    if not texts:
        return []
    # verbose=False: texts beyond the model's length are no surprise here, they are dropped and counted.
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return rows
