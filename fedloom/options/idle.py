"""Options of a choice that is not made: whoever gives one believes that it does something."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fedloom.errors import UserError, shown


def refuse_idle(config: Any, names: Iterable[str], where: str, instead: str) -> None:
    """Refuse options that would have no effect, where they have another value than their default.

    A run that goes on is let be: it has been without their effect from its beginning.

    Args:
        config: Options of a command.
        names: Those that belong to the choice; the command need not have all.
        where: Without what, or with what else, they have no meaning, in words.
        instead: What to choose for them to have one, as it is typed.

    Raises:
        UserError: One is given.
    """
    if getattr(config, "resume", False):
        return
    names = set(names)
    for field in fields(config):
        if field.name in names and (given := getattr(config, field.name)) != field.default:
            raise UserError(
                f"{field.name}: {shown(given)} has no meaning {where}; choose {instead}, or leave "
                f"{field.name} out"
            )
