"""Whether data fit a model: token ids have rows in its embedding, and texts have room in its positions."""

import logging
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.errors import UserError
from fedloom.model.structure import ends_with_its_positions, positions_of, rows_of

log = logging.getLogger(__name__)


def check_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Sequence[int]],
    *,
    max_length: int,
    virtual: int = 0,
) -> None:
    """Make sure that a model can read texts.

    What counts is what the data hold: a tokenizer may have more tokens than the model has rows, such as a pad
    token, as long as none of them is looked at, and `max_length` may be large where no text is long.

    Args:
        model: Its weights are not looked at.
        tokenizer: The model's.
        texts: Token ids, whole sequences.
        max_length: The option, for the message.
        virtual: Virtual tokens before each text.

    Raises:
        UserError: A token has no row, or a text is longer than the model's table of positions. (Where
            positions
            are rotations or relative, the model reads on, and a warning says that it has not learnt to.)
    """
    rows, room = rows_of(model), positions_of(model)
    longest, largest = 0, -1
    for ids in texts:
        longest, largest = max(longest, len(ids)), max(largest, max(ids, default=-1))
    if rows is not None and largest >= rows:
        raise UserError(
            f"model {model.name_or_path!r}: the tokenizer has {len(tokenizer)} tokens and the model {rows} "
            f"rows, and the data use token {largest}, {tokenizer.convert_ids_to_tokens(largest)!r}, which "
            "has none. Use the tokenizer that belongs to the model, or give the model more rows "
            "(resize_token_embeddings) and save both."
        )
    if room is None or longest + virtual <= room:
        return
    beside = f" beside {virtual} virtual ones" if virtual else ""
    message = (
        f"max_length: {max_length} is more than the model's {room} positions{beside}, and the longest text "
        f"has {longest} tokens; use --max_length {room - virtual}"
    )
    if ends_with_its_positions(model):
        raise UserError(message)
    log.warning("%s, as the model was trained on no longer ones", message)
