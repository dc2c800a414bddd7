"""`fedloom methods`: the table of methods, and the choices of each part."""

import json
from typing import Any

from rich.table import Table

from fedloom.errors import plain_console
from fedloom.options.methods import ATTACK, METHODS, PARTS, Method
from fedloom.options.parts import choices, load_plugins


def run_methods(*, as_json: bool, plugin: str | None) -> None:
    """Print the table.

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
    table = Table("method", "sets", "with", "source")
    for row in METHODS:
        settings = {**row.sets, **(row.server or {}), **(row.graph or {})}
        places = {"a server": row.server, "a graph": row.graph}
        where = ", ".join(place for place, there in places.items() if there is not None)
        table.add_row(
            row.name, " ".join(f"--{name} {value}" for name, value in settings.items()), where, row.source
        )
    console = plain_console()
    console.print(table)
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
