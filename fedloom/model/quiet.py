"""Keep transformers quiet."""

from transformers.utils import logging as transformers_logging


def quieten() -> None:
    """Keep transformers' bars and warnings out of the user's way."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
