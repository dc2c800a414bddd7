"""The options that choose a method, or its parts; see `fedloom.options.methods`."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar

from fedloom.errors import UserError
from fedloom.options.declare import option
from fedloom.options.methods import method, with_method
from fedloom.options.parsing import by_own_names
from fedloom.options.parts import listed, load_plugins
from fedloom.options.synonyms import did_you_mean

log = logging.getLogger(__name__)

C = TypeVar("C", bound=type)


@dataclass(frozen=True, kw_only=True)
class AnyMethod:
    """Method."""

    method: str | None = option(
        None,
        "a method of the literature, which sets the options of its parts; `fedloom methods` lists all",
    )
    plugin: str | None = option(
        None,
        "module, or Python file, that adds methods or parts of your own; see docs/extending.md",
        path=True,
    )
    client_rule: str = option(
        "auto",
        f"what clients do to their gradients: {listed('client_rule')}; auto: as method or fed_alg say, else "
        "none",
    )
    aggregator: str = option(
        "auto",
        f"how many changes become one: {listed('aggregator')}; auto: as method says, else mean; of real "
        "clients and peers (flower, peer) norm_bound, where that has a meaning: no one's change counts for "
        "more than twice the median one",
    )
    lora_aggregation: str = option(
        "auto",
        f"how LoRA's factors are combined: {listed('lora_aggregation')}; factors: A and B each for itself; "
        "auto: as method says, else factors",
    )
    residual_rank: int | None = option(
        None,
        "most rank of what fedex and flora change the base by, which is then kept beside it as factors, the "
        "nearest of that rank, quantised bases included; 0: fedex is FedAvg; none: any, in its weights. "
        "Without a server fedex needs one, from 1: each peer has such a change of its own, and sends it",
        minimum=0,
        maximum=100_000,
    )
    share: str = option(
        "auto",
        f"what is shared: {listed('share')}; all: the whole adapter; a: LoRA's A, while every client keeps "
        "its own B; body: all but the last LAYERS and the head; head: those alone; auto: as method says, "
        "else all",
    )
    train_factors: str = option(
        "auto",
        f"which of LoRA's factors train: {listed('train_factors')}; b: A stays as it was drawn; alternate: "
        "in turns of so many rounds, B first; auto: as method says, else both",
    )
    compress: str = option(
        "auto",
        f"what is sent: {listed('compress')}; none: numbers as they are; int8, int4, sign: fewer bits of "
        "each; "
        "topk, random_mask: a share of them, the largest or at random places; powersgd: matrices as products "
        "of a low rank; auto: as method says, else none",
    )


@dataclass(frozen=True, kw_only=True)
class ServerMethod:
    """Method."""

    server_optimizer: str = option(
        "auto",
        f"what the server does with the combined change: {listed('server_optimizer')}; none takes it as it "
        "is, the others are at lr; auto: as method or fed_alg say",
    )


@dataclass(frozen=True, kw_only=True)
class GraphMethod:
    """Method."""

    mixing_step: float = option(
        1.0,
        "CHOCO-SGD's consensus step size, by which neighbours' weights are multiplied: 1 mixes fully; take "
        "a smaller one with strong compression, such as 0.05 with topk:0.01",
        above=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Methods."""

    json: bool = option(False, "print a list of objects: name, source, sets, server, graph")
    plugin: str | None = option(None, "module, or Python file, that adds methods or parts", path=True)


def sets_method(*, server: bool, deployed: bool = False) -> Any:
    """Let a dataclass of options take other names of them, and what its `method` sets; a decorator.

    Args:
        server: Whether they are those of a run with a server.
        deployed: Whether they are those of real clients or peers.
    """

    def decorate(config_class: C) -> C:
        made = config_class.__init__  # type: ignore[misc]

        def init(self: Any, **given: Any) -> None:
            names = {field.name for field in fields(self)}
            named = by_own_names(given, names)
            if isinstance(name := named.get("method"), str):
                _know(name, named.get("plugin"), names, server=server)
            defaults = {field.name: field.default for field in fields(self)}
            named = with_method(named, server=server, deployed=deployed)
            made(self, **(_with_clients_enough(named, defaults) if server else named))

        config_class.__init__ = init  # type: ignore[misc]
        return config_class

    return decorate


def _with_clients_enough(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Given options, and no more clients in a round by default than there are."""
    clients, usual = given.get("client_num"), defaults["client_num_per_step"]
    if "client_num_per_step" in given or not isinstance(clients, int) or not 1 <= clients < usual:
        return dict(given)
    _say_once(f"client_num_per_step: {clients}, all clients that there are; its default is {usual}")
    return {**given, "client_num_per_step": clients}


@cache
def _say_once(words: str) -> None:
    log.warning(words)


def _know(name: str, plugin: object, known: Collection[str], *, server: bool) -> None:
    """Let a method that a plugin adds be known before its options are asked for.

    Args:
        name: Of the method.
        plugin: The option.
        known: Names of all options.
        server: Whether they are those of a run with a server.

    Raises:
        UserError: The plugin cannot be imported, or the method sets what is no option.
    """
    load_plugins(plugin if isinstance(plugin, str) else None)
    row = method(name)
    settings = row.settings(server=server) if row else None
    for wrong in (settings or {}).keys() - known:
        raise UserError(
            f"method: {name} sets {wrong}, which is no option{did_you_mean(wrong, known)}; "
            "mend its row in the plugin"
        )
