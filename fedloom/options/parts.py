"""The choices that each part of an algorithm has: the files of its folder, and what plugins add.

A choice is named in an option as ``name``, or with numbers as ``name:0.1``. The function of that name, in the
file of that name, makes it: numbers are its arguments in their order, and what stands behind ``*`` in its
signature is given by name from the run's options. Names are found without importing anything, so that
`--help` loads no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedloom.errors import UserError, shown
from fedloom.options.methods import ATTACK, METHODS, PARTS, Method, Part
from fedloom.options.synonyms import did_you_mean

ENTRY_POINTS = "fedloom.plugins"
"""Group of the entry points whose modules are plugins without being named."""

_ALL = (*PARTS, ATTACK)

_plugged: dict[tuple[str, str], Callable[..., Any]] = {}
_loaded: set[str] = set()


def plug_in(option: str, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function a choice of a part; a decorator for plugins.

    Args:
        option: The part's option, such as ``aggregator``.
        name: What the choice is called; None: as the function.

    Raises:
        ValueError: There is no such part, or the package has a choice of this name.
    """
    part = next((part for part in _ALL if part.option == option), None)
    if part is None:
        raise ValueError(f"{option} is no part; one of {', '.join(part.option for part in _ALL)} is")

    def remember(make: Callable[..., Any]) -> Callable[..., Any]:
        called = name or make.__name__
        if called in _files(part):
            raise ValueError(f"{option} {called} is fedloom's own; give yours another name")
        _plugged[option, called] = make
        return make

    return remember


def plug_in_method(row: Method) -> None:
    """Add a row to the table, for plugins; one of the same name is replaced."""
    METHODS[:] = [other for other in METHODS if other.name.lower() != row.name.lower()] + [row]


def load_plugins(named: str | None) -> None:
    """Import the plugins of installed packages, and the one that is named.

    Args:
        named: A module's name, or the path of a Python file; None is none.

    Raises:
        UserError: It cannot be imported.
    """
    for installed in _installed():
        _load(installed)
    if named:
        _load(named)


@cache
def _installed() -> tuple[str, ...]:
    # Looking for them reads the metadata of every installed package.
    return tuple(entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS))


def _load(named: str) -> None:
    if named in _loaded:
        return
    try:
        if named.endswith(".py"):
            path = Path(named).resolve()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(path.stem, module)
            spec.loader.exec_module(module)
        else:
            importlib.import_module(named)
    except (Exception, SystemExit) as error:  # whatever a user's own code does
        raise UserError(
            f"plugin: {shown(named)} cannot be imported ({type(error).__name__}: {shown(error)}); "
            "give the name of a module, or the path of a Python file"
        ) from error
    _loaded.add(named)


def _files(part: Part) -> list[str]:
    spec = importlib.util.find_spec(part.folder)
    assert spec is not None and spec.submodule_search_locations is not None
    return sorted(found.name for found in pkgutil.iter_modules(spec.submodule_search_locations))


def choices(part: Part) -> list[str]:
    """The names that may be chosen for a part."""
    return sorted({*_files(part), *(name for option, name in _plugged if option == part.option)})


def listed(option: str) -> str:
    """The names that come with the package for a part, with the numbers that each takes: for `--help`.

    Files are read, not imported: they load torch.
    """
    (part,) = (part for part in _ALL if part.option == option)
    spec = importlib.util.find_spec(part.folder)
    assert spec is not None and spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    described = []
    for name in _files(part):
        tree = ast.parse(Path(folder, f"{name}.py").read_text(encoding="utf-8"))
        made = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        described.append(":".join([name, *(argument.arg.upper() for argument in made.args.args)]))
    return ", ".join(described)


def is_plugged(option: str, text: str) -> bool:
    """Whether an option's choice is a plugin's."""
    return (option, text.partition(":")[0]) in _plugged


def check_choice(part: Part, text: str) -> None:
    """Judge what an option gives for a part.

    Raises:
        UserError: There is no such choice, or a number is none.
    """
    name, *numbers = text.split(":")
    known = choices(part)
    if name not in known:
        raise UserError(
            f"{part.option}: {shown(name)} is not one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    for number in numbers:
        if not _is_number(number):
            raise UserError(
                f"{part.option}: {shown(number) or 'nothing'} in {shown(text)} is no number; "
                f"write it as {name}:0.1"
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def make(part: Part, text: str, settings: Mapping[str, Any]) -> Any:
    """What an option gives for a part.

    Args:
        part: Which.
        text: The option's value.
        settings: Options of the run by name, from which the function takes those that it names.

    Raises:
        UserError: There is no such choice, or it takes other numbers.
    """
    check_choice(part, text)
    name, *numbers = text.split(":")
    made = _plugged.get((part.option, name))
    if made is None:
        made = getattr(importlib.import_module(f"{part.folder}.{name}"), name)
    parameters = inspect.signature(made).parameters.values()
    takes = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    from_run = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if lacking := [p.name for p in from_run if p.default is p.empty and p.name not in settings]:
        raise UserError(
            f"{part.option}: {name} has no meaning here, where there is no {lacking[0]}; choose another, "
            f"such as {part.default}"
        )
    wanted = {p.name: settings[p.name] for p in from_run if p.name in settings}
    if len(numbers) > len(takes):
        few = f"at most {len(takes)}: {', '.join(p.name for p in takes)}" if takes else "none"
        raise UserError(f"{part.option}: {shown(text)} gives {len(numbers)} numbers, and {name} takes {few}")
    return made(*map(float, numbers), **wanted)
