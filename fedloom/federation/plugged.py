"""What a plugin's parts do wrong, told as a user's mistake, with the place in the plugin.

The package's own parts are held by tests; those of a plugin are checked here, at every call: an exception, a
result of another kind, or of other names, shapes, dtypes or devices than it should have, which broadcasting
would let pass; and a combined change that is not finite where all that it was made of is. What a client rule
makes of finite numbers is said as well, and leads to no error: a round goes on without the client.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedloom.client.optimisers import Optimiser
from fedloom.client.rules import ClientRule
from fedloom.errors import UserError, shown
from fedloom.federation.aggregators import Folding, Refactoring, StatefulAggregator
from fedloom.federation.attacks import Attack
from fedloom.federation.codecs import Codec
from fedloom.model.bank import AdapterBank
from fedloom.options.methods import Part
from fedloom.options.parts import is_plugged, make

log = logging.getLogger(__name__)

_MANY: dict[str, type] = {
    "server_optimizer": Optimiser,
    "client_rule": ClientRule,
    "compress": Codec,
    "attack": Attack,
}
"""Parts of several functions, with what holds them; the others are one function, or may be."""


@dataclass(frozen=True)
class _Like:
    """Tensors of a result.

    Attributes:
        row: A row or a bank, or a tensor, whose names, shapes, dtypes and devices it has.
        lacking, more: Whether it may lack some of the names, or have others beside them.
        rows: How long the first axis of all tensors is; None: any.
    """

    row: Any
    lacking: bool = False
    more: bool = False
    rows: int | None = None


_TENSORS = _Like({}, more=True)

_RESULTS: dict[tuple[str, str], Callable[..., tuple[_Like, ...]]] = {
    ("aggregator", ""): lambda changes: (_Like(changes.before),),
    ("aggregator", "init"): lambda *given: (_TENSORS,),
    ("aggregator", "combine"): lambda changes, state: (_Like(changes.before), _Like(state)),
    ("lora_aggregation", ""): lambda changes: (_Like(changes.before),),
    ("lora_aggregation", "combine"): lambda changes: (_Like(changes.before, more=True),),
    ("lora_aggregation", "refactor"): lambda adapter, round_: (_Like(adapter),),
    ("compress", "encode"): lambda *given: (_TENSORS,),
    ("compress", "decode"): lambda payload, like: (_Like(like),),
    ("compress", "wanted"): lambda t, e: (_Like(t),),
    ("compress", "kept"): lambda t, e, arrived: (_Like(t),),
    ("client_rule", "memory"): lambda *given: (_TENSORS,),
    ("client_rule", "kept"): lambda *given: (_TENSORS,),
    ("client_rule", "mixed"): lambda *given: (_TENSORS,),
    ("client_rule", "hand_out"): lambda *given: (_TENSORS,),
    ("client_rule", "gradient"): lambda at, bank, *others: (_Like(bank),),
    ("client_rule", "observe"): lambda g, bank, start, memory, *others: (_Like(memory, lacking=True),),
    ("client_rule", "correct"): lambda gradients, *others: (_Like(gradients),),
    ("client_rule", "finish"): lambda start, bank, steps, memory, received: (
        _Like(memory, lacking=True),
        _Like({}, more=True, rows=bank.clients),
    ),
    ("client_rule", "absorb"): lambda kept, *others: (_Like(kept),),
    ("client_rule", "amend"): lambda change, kept, share: (_Like(change), _Like(kept)),
    ("attack", "craft"): lambda delta, sight: (_Like(delta),),
    ("server_optimizer", "init"): lambda bank: (_TENSORS,),
    ("server_optimizer", "step"): lambda bank, gradients, state, active: (_Like(bank), _Like(state)),
}
"""What the results of a function must be like, of what it was given, by option and function."""

_OF_FINITE = {
    ("aggregator", ""),
    ("aggregator", "combine"),
    ("client_rule", "amend"),
    ("client_rule", "absorb"),
}
"""Functions that are given finite numbers, so that others are their own making."""

_OF_CLIENTS = {("client_rule", "observe"), ("client_rule", "correct"), ("client_rule", "finish")}
"""Functions that may be given others, of clients that diverge."""

_PACKAGE = Path(__file__).parents[1]


def made(part: Part, text: str, settings: Mapping[str, Any]) -> Any:
    """A part of an algorithm as its option says; one that a plugin makes is checked at every call.

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
    holds_many = isinstance(found, StatefulAggregator) and option == "aggregator"
    if not holds_many and not (callable(found) if kind is None else isinstance(found, kind)):
        wanted = "a function" if kind is None else f"{kind.__name__}(...)"
        raise UserError(f"{who} returned {shown(repr(found))}, not {wanted}; mend the plugin")
    if isinstance(found, Folding):
        among_peers = found.among_peers and _checked(option, "combine", who, found.among_peers)
        return replace(
            found, combine=_checked(option, "combine", who, found.combine), among_peers=among_peers
        )
    if isinstance(found, Refactoring):
        return replace(found, refactor=_checked(option, "refactor", f"{who}'s refactor", found.refactor))
    if kind is None and not holds_many:
        return _checked(option, "", who, found)
    return _all_checked(option, who, found)


def _all_checked(option: str, who: str, functions: Any) -> Any:
    """A named tuple of functions, and perhaps of others such, all of them checked at every call."""
    checked = {}
    for field, each in functions._asdict().items():
        if hasattr(each, "_asdict"):
            checked[field] = _all_checked(option, f"{who}'s {field}", each)
        elif callable(each):
            checked[field] = _checked(option, field, f"{who}'s {field}", each)
    return functions._replace(**checked)


def _checked(option: str, field: str, who: str, function: Callable[..., Any]) -> Callable[..., Any]:
    results = _RESULTS.get((option, field))
    warned = False

    @functools.wraps(function)
    def call(*given: Any) -> Any:
        nonlocal warned
        found = _called(who, function, *given)
        if option in ("share", "train_factors"):
            _check_share(who, found, *given)
        elif results is not None:
            wanted = results(*given)
            several = found if len(wanted) > 1 else (found,)
            if not isinstance(several, tuple) or len(several) != len(wanted):
                raise UserError(
                    f"{who} returned {shown(repr(found))}, not {len(wanted)} results; mend the plugin"
                )
            for one, like in zip(several, wanted, strict=True):
                _check_tensors(who, one, like)
            if (option, field) in _OF_FINITE:
                for one in several:
                    _check_finite(who, one)
            if (option, field) in _OF_CLIENTS and not warned and not _all_finite(found):
                warned = _all_finite(given)
                if warned:
                    log.warning(
                        "%s made a number that is not finite of finite ones; mend the plugin, or clients "
                        "are left out",
                        who,
                    )
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


def _check_tensors(who: str, found: Any, wanted: _Like) -> None:
    like = wanted.row
    if isinstance(like, AdapterBank):
        found, like = getattr(found, "tensors", found), like.tensors
    if isinstance(like, torch.Tensor):
        found, like = {"what it was given": found}, {"what it was given": like}
    if not isinstance(found, Mapping) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise UserError(f"{who} returned {shown(repr(found))}, not a tensor for each name; mend the plugin")
    if not wanted.lacking and (lacking := sorted(like.keys() - found.keys())):
        raise UserError(f"{who} returned no tensor for {lacking[0]}; mend the plugin")
    if not wanted.more and (unknown := sorted(found.keys() - like.keys())):
        raise UserError(
            f"{who} returned a tensor for {shown(unknown[0])}, which it was not given; mend the plugin"
        )
    for name, t in found.items() if wanted.rows is not None else ():
        if t.shape[:1] != (wanted.rows,):
            raise UserError(
                f"{who} returned a tensor of the shape {tuple(t.shape)} for {shown(name)}, which must have a "
                f"row for each of {wanted.rows} clients; mend the plugin"
            )
    for name in sorted(like.keys() & found.keys()):
        t, was = like[name], found[name]
        if was.shape != t.shape:
            raise UserError(
                f"{who} returned a tensor of the shape {tuple(was.shape)} for {name}, which has "
                f"{tuple(t.shape)}; mend the plugin"
            )
        if was.dtype != t.dtype or was.device != t.device:
            raise UserError(
                f"{who} returned {was.dtype} on {was.device} for {name}, which is {t.dtype} on {t.device} "
                "(weights and statistics are float64 on the CPU); mend the plugin, as by weights.to(t)"
            )


def _all_finite(given: Any) -> bool:
    """Whether all numbers are finite, of tensors in banks, rows and tuples of these."""
    if isinstance(given, torch.Tensor):
        return bool(given.isfinite().all())
    parts = given.tensors if isinstance(given, AdapterBank) else given
    parts = parts.values() if isinstance(parts, Mapping) else parts
    return all(map(_all_finite, parts))


def _check_finite(who: str, found: Mapping[str, torch.Tensor]) -> None:
    for name, t in found.items():
        if not bool(t.isfinite().all()):
            raise UserError(
                f"{who} returned a number that is not finite for {name}, and all that it was given is; mend "
                "the plugin"
            )
