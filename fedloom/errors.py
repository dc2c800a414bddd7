"""A user's mistake; and text that others wrote, made fit to be shown: harmless to a terminal, short, without secrets."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_VALUE = 80
"""Characters of a value that a message repeats."""
LONGEST_MESSAGE = 1500

HIDDEN = "(hidden)"
_TOKEN = re.compile(r"(?:hf_(?:jwt_|oauth_)?|api_org_)[A-Za-z0-9]{16,}[\w.\-]*")
_SHORTEST_SECRET = 8  # a shorter word is part of too many others

# What moves a cursor, breaks a line or turns its direction; half of a surrogate pair cannot even be printed.
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class UserError(Exception):
    """A mistake that the user can mend: the message gives the value, the rule and the fix.

    The command line prints the message without a traceback and exits with status 2. A hub token never stands
    in it, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


def is_plain(text: str) -> bool:
    """Whether a text has neither control characters nor halves of surrogate pairs."""
    return text.isprintable() or not any(map(_is_control, text))


def shown(value: object, longest: int = LONGEST_VALUE) -> str:
    r"""A value as a message repeats it: one line, control characters as escapes (`\x1b`), its end cut off.

    >>> shown("a\nb")
    'a\\nb'
    """
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, a list in a list in a list ...
        return f"a value of type {type(value).__name__} that is too large to show"
    if len(text) > longest:
        return f"{_escaped(text[:longest])}… ({len(text):,} characters)"
    return _escaped(text)


def one_line(message: str) -> str:
    """A message for a terminal: one line, the middle cut out where it is long, since the fix stands last."""
    text = " ".join(message.split("\n"))
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} … {text[-half:]}"
    return _escaped(text)


def looks_like_a_token(text: str) -> bool:
    """Whether a hub token stands in a text, by the form of such tokens."""
    return _TOKEN.search(text) is not None


def without_secrets(text: str, *secrets: str | None) -> str:
    """A text without hub tokens: those given, that of `HF_TOKEN`, and what looks like one.

    Args:
        text: Of any origin.
        secrets: Tokens in use.
    """
    for secret in (*secrets, os.environ.get("HF_TOKEN")):
        if secret and len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


def plain_console(*, stderr: bool = False) -> Console:
    """A console to which names are data: no `[bold]`, no `:smile:` in them means anything."""
    from rich.console import Console  # not at the top: a mistyped flag is told before rich is loaded

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def _is_control(character: str) -> bool:
    return character in _TURNS or unicodedata.category(character) in _CONTROL


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode("ascii") if _is_control(c) else c for c in text)
