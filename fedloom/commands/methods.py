"""`fedloom methods`: the table of methods, and the choices of each part."""

import json
from typing import Any

from rich.markup import escape

from fedloom.errors import plain_console
from fedloom.options.methods import ATTACK, METHODS, PARTS, Method
from fedloom.options.parts import choices, load_plugins


def run_methods(*, as_json: bool, plugin: str | None) -> None:
    """Print the table: each method, and what it sets with a server (`fed`) and without one (`dfl`).

    Args:
        as_json: Print a list of objects instead, one for each method: ``name``, ``source``, ``sets``, and
            whether it has a meaning with a ``server`` and on a ``graph``.
        plugin: A module, or Python file, with more of them.

    Raises:
        UserError: The plugin cannot be imported.
    """
    load_plugins(plugin)
    if as_json:
        print(json.dumps([_object(row) for row in METHODS], indent=1))
        return
    console = plain_console()
    for row in METHODS:
        console.print(f"[bold]{escape(row.name)}[/]  {escape(row.source)}", markup=True, soft_wrap=True)
        for command in ("fed", "dfl"):
            settings = row.settings(server=command == "fed")
            if settings is not None:
                sets = " ".join(f"--{name} {value}" for name, value in settings.items())
                console.print(f"  {command}: {sets}", soft_wrap=True)
    print()
    for part in (*PARTS, ATTACK):
        console.print(f"{part.option}: {', '.join(choices(part))} (default: {part.default})", soft_wrap=True)


def _object(row: Method) -> dict[str, Any]:
    return {
        "name": row.name,
        "source": row.source,
        "sets": dict(row.sets),
        "server": row.server is not None,
        "graph": row.graph is not None,
    }
