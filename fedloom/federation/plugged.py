"""What a plugin's parts do wrong, told as a user's mistake, with the place in the plugin.

The package's own parts are held by tests; those of a plugin are held here, at every call: an exception, or a
result of another kind, or of other names or shapes than it should have, which broadcasting would let pass.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedloom.client.optimisers import Optimiser
from fedloom.client.rules import ClientRule
from fedloom.errors import UserError, shown
from fedloom.federation.attacks import Attack
from fedloom.federation.codecs import Codec
from fedloom.model.bank import AdapterBank
from fedloom.options.methods import Part
from fedloom.options.parts import is_plugged, make

_MANY: dict[str, type] = {
    "server_optimizer": Optimiser,
    "client_rule": ClientRule,
    "compress": Codec,
    "attack": Attack,
}
"""Parts of several functions, with what holds them; the others are one function."""

_LIKE: dict[tuple[str, str], Callable[..., Any]] = {
    ("aggregator", ""): lambda changes: changes.before,
    ("lora_aggregation", ""): lambda changes: changes.before,
    ("compress", "decode"): lambda payload, like: like,
    ("client_rule", "correct"): lambda gradients, *others: gradients,
    ("client_rule", "absorb"): lambda kept, *others: kept,
    ("client_rule", "amend"): lambda change, *others: change,
    ("attack", "craft"): lambda delta, sight: delta,
    ("server_optimizer", "step"): lambda bank, *others: bank,
}
"""Whose names and shapes the result of a function has, by option and function."""


_PACKAGE = Path(__file__).parents[1]


def made(part: Part, text: str, settings: Mapping[str, Any]) -> Any:
    """A part of an algorithm as its option says; one that a plugin makes is held at every call.

    Args:
        part: Which.
        text: The option's value.
        settings: The run's options by name, for what the part takes of them.

    Raises:
        UserError: It cannot be made, or a plugin's is of another kind than such a part is.
    """
    option = part.option
    if not is_plugged(option, text):
        return make(part, text, settings)
    who = f"{option}: {text}"
    found, kind = _called(who, make, part, text, settings), _MANY.get(option)
    if not (callable(found) if kind is None else isinstance(found, kind)):
        wanted = "a function" if kind is None else f"{kind.__name__}(...)"
        raise UserError(f"{who} returned {shown(repr(found))}, not {wanted}; mend the plugin")
    if kind is None:
        return _checked(option, "", who, found)
    functions = {field: each for field, each in found._asdict().items() if callable(each)}
    return found._replace(
        **{field: _checked(option, field, f"{who}'s {field}", each) for field, each in functions.items()}
    )


def _checked(option: str, field: str, who: str, function: Callable[..., Any]) -> Callable[..., Any]:
    like = _LIKE.get((option, field))

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        found = _called(who, function, *given)
        if option in ("share", "train_factors"):
            _check_share(who, found, *given)
        elif like is not None:
            first = found[0] if field in ("step", "amend") and isinstance(found, tuple) else found
            _check_shapes(who, first, like(*given))
        return found

    return call


def _called(who: str, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except UserError:
        raise
    except Exception as error:  # whatever a user's own code does
        raise UserError(
            f"{who} failed{_where(error)} ({type(error).__name__}: {shown(error)}); mend the plugin"
        ) from error


def _where(error: Exception) -> str:
    """The last line of the plugin's own file that led to an error; the libraries that it calls are right."""
    calls = traceback.extract_tb(error.__traceback__)
    foreign = [call for call in calls if _PACKAGE not in Path(call.filename).parents]
    # A plugin that is installed is among the libraries.
    outside = [call for call in foreign if "site-packages" not in call.filename] or foreign
    in_plugin = [call for call in outside if call.filename == outside[0].filename]
    return f" at {in_plugin[-1].filename}, line {in_plugin[-1].lineno}" if in_plugin else ""


def _check_share(who: str, found: Any, names: Any, *others: Any) -> None:
    if not isinstance(found, frozenset | set) or not found or not found <= set(names):
        raise UserError(
            f"{who} returned {shown(repr(found))}, not a set of some of the adapter's names; mend the plugin"
        )


def _check_shapes(who: str, found: Any, like: Any) -> None:
    if isinstance(like, AdapterBank):
        found, like = getattr(found, "tensors", found), like.tensors
    if not isinstance(found, Mapping):
        raise UserError(f"{who} returned {shown(repr(found))}, not a tensor for each name; mend the plugin")
    if lacking := sorted(like.keys() - found.keys()):
        raise UserError(f"{who} returned no tensor for {lacking[0]}; mend the plugin")
    if unknown := sorted(found.keys() - like.keys()):
        raise UserError(
            f"{who} returned a tensor for {shown(unknown[0])}, which is no parameter; mend the plugin"
        )
    for name, t in like.items():
        if getattr(found[name], "shape", None) != t.shape:
            was = tuple(getattr(found[name], "shape", ()))
            raise UserError(
                f"{who} returned a tensor of the shape {was} for {name}, which has {tuple(t.shape)}; "
                "mend the plugin"
            )
