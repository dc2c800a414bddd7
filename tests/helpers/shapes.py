"""What jaxtyping checks at run time: the functions whose annotations have a shape, and no others.

Its import hook wraps every function of a module, at a cost that is the same for those that take two numbers.
A test sees the first calls of each function checked: a loop calls with the same kinds of shapes again.
"""

import dataclasses
import functools
import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped
CHECKED_CALLS = 20
calls: Counter[Any] = Counter()
"""Of each function, in this test."""


def check_shapes(modules: list[str]) -> None:
    """Have the shapes of these modules checked, of functions as of fields; they are not imported yet."""
    if importlib.util.find_spec("beartype") is None:  # a machine with a GPU and not much else
        return
    jaxtyping.jaxtyped = _where_there_are_shapes
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def _where_there_are_shapes(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(thing: Any) -> Any:
        function = thing
        if isinstance(thing, classmethod | staticmethod):
            function = thing.__func__
        elif isinstance(thing, property):
            function = thing.fget
        elif dataclasses.is_dataclass(thing):
            function = thing.__init__
        elif not inspect.isfunction(thing):
            return thing
        if not _has_shapes(function):
            return thing
        jaxtyped = _jaxtyped(typechecker=typechecker)
        return _first_calls(thing, jaxtyped) if inspect.isfunction(thing) else jaxtyped(thing)

    return decorate


def _first_calls(
    plain: Callable[..., Any], jaxtyped: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    code = plain.__code__  # the same for every function that a call defines anew
    checked = None  # made when it is first needed: most of those are not called

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        calls[code] += 1
        if calls[code] > CHECKED_CALLS:
            return plain(*args, **kwargs)
        checked = checked or jaxtyped(plain)
        return checked(*args, **kwargs)

    return call


def _has_shapes(function: Any) -> bool:
    try:
        # A dataclass' own methods have the names of its module.
        hints = get_type_hints(function)
    except Exception:  # a name that only type checkers import
        return True
    return any(_is_shape(hint) for hint in hints.values())


def _is_shape(hint: Any) -> bool:
    if isinstance(hint, list):  # what a Callable takes
        return any(map(_is_shape, hint))
    if isinstance(hint, type) and not get_args(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, get_args(hint)))
