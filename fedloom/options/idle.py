"""Options of a choice that is not made: whoever gives one believes that it does something."""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from fedloom.errors import UserError, shown


def idle(config: Any, names: Iterable[str], where: str) -> list[str]:
    """What to say of options that have no effect, where they have another value than their default.

    It is a warning where nobody is harmed: one file of options may serve several choices, as those of the
    original systems do, and a comparison's ``options`` all of its settings.

    Args:
        config: Options of a command.
        names: Those that belong to the choice; the command need not have all.
        where: Without what, or with what else, they have no effect, in words.
    """
    return [f"{name}: {shown(value)} has no effect {where}" for name, value in _given(config, names)]


def refuse_idle(config: Any, names: Iterable[str], where: str, instead: str) -> None:
    """Refuse such options, where who gives one believes to be protected.

    Args:
        config: See `idle`, as for what follows.
        names: The same.
        where: The same.
        instead: What to choose for them to have an effect, as it is typed.

    Raises:
        UserError: One is given.
    """
    for name, value in _given(config, names):
        raise UserError(
            f"{name}: {shown(value)} has no meaning {where}; choose {instead}, or leave {name} out"
        )


def _given(config: Any, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    wanted = set(names)
    for field in fields(config):
        if field.name in wanted and (value := getattr(config, field.name)) != field.default:
            yield field.name, value
