"""Conversations, as data sets write them: a list of messages with ``role`` and ``content`` (TRL, OpenAI), or
with ``from`` and ``value`` (ShareGPT). A ValueError names the field; the caller adds the place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedloom.data.example import Role, Turn
from fedloom.data.fields import NotLearnable, Row, is_missing

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
}
_OF_TOOLS = ("tool", "function", "ipython", "observation", "function_call", "tool_call", "tool_response")
_KEYS = (("role", "content"), ("from", "value"))


def is_talk(value: object) -> bool:
    """Tells whether a field holds messages: a list of them, or, as csv has it, one written as JSON."""
    found = _listed(value)
    return isinstance(found, list) and all(isinstance(one, Mapping) and _keys(one) for one in found)


def read_turns(row: Row, field: str) -> tuple[Turn, ...]:
    """Returns the messages of a field.

    A system message may be empty, and is then none. ``weight`` of 0, as OpenAI's files have it, makes an
    answer one that is not learned.

    Raises:
        NotLearnable: If a message is a tool's or calls one, or shows an image.
        ValueError: If the field is no list of messages, or one has another role or no text.
    """
    found = _listed(row.get(field))
    if not isinstance(found, list) or not found:
        what = "is empty" if is_missing(row.get(field)) or found == [] else "must be a list of messages"
        raise ValueError(f"field '{field}' {what}; write [{{'role': 'user', 'content': '…'}}, …]")
    turns = [_turn(one, f"field '{field}', message {number}") for number, one in enumerate(found, start=1)]
    return tuple(turn for turn in turns if turn is not None)


def answers_in(turns: tuple[Turn, ...]) -> int:
    """How many messages the model learns to write."""
    return sum(turn.role == "assistant" and turn.learned for turn in turns)


def _listed(value: object) -> object:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    # A message by itself, as some have for an answer.
    return [value] if isinstance(value, Mapping) and _keys(value) else value


def _keys(message: Mapping[Any, Any]) -> tuple[str, str] | None:
    return next((keys for keys in _KEYS if keys[0] in message), None)


def _turn(message: object, where: str) -> Turn | None:
    keys = _keys(message) if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or keys is None:
        raise ValueError(f"{where} must have 'role' and 'content' (or 'from' and 'value')")
    role = message[keys[0]]
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if message.get("tool_calls") or message.get("function_call"):
        raise NotLearnable(f"{where} calls a tool, which cannot be learned here")
    if isinstance(role, str) and role.strip().lower() in _OF_TOOLS:
        raise NotLearnable(
            f"{where} has the {keys[0]} {_short(role)}, of a tool, which cannot be learned here"
        )
    if known is None:
        raise ValueError(
            f"{where} has the {keys[0]} {_short(role)}; it must be system, user or assistant "
            "(or human, gpt), so rename it or leave the row out"
        )
    text = _text(message.get(keys[1]), f"{where}: '{keys[1]}'")
    if not text:
        if known == "system":
            return None
        raise ValueError(f"{where}: '{keys[1]}' is empty; leave the message out")
    return Turn(known, text, message.get("weight") != 0)


def _text(content: object, where: str) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise NotLearnable(f"{where} has a part that is no text, such as an image")
        content = "".join(map(str, parts))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError(f"{where} must be text, but is {_short(content)}")
    return content.strip()


def _short(value: object) -> str:
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:60]}…"
