"""Of a run's adapters those that `fedloom merge` and `fedloom chat` are to use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedloom.errors import UserError
from fedloom.evaluation.saved_adapters import CONFIG_FILE, SavedAdapter, find_adapters, options_of_run
from fedloom.model.source import ALIASES
from fedloom.runs.checkpoint import checkpoints_of

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)

CLIENT, PEER = "client-", "peer-"


def adapters_of(given: str, round_: int | None) -> list[SavedAdapter]:
    """The adapters that a path means; of a run's folder those of one checkpoint.

    Args:
        given: A run's folder, a checkpoint or an adapter's folder, as the user gave it.
        round_: Of a run's folder this round's checkpoint; None: the newest.

    Raises:
        UserError: There is no adapter, or no checkpoint of the round.
    """
    if round_ is None:
        return find_adapters([given])
    run = Path(given).expanduser()
    checkpoints = {int(path.name.removeprefix("round-")): path for path in checkpoints_of(run)}
    if not checkpoints:
        raise UserError(f"round: {given} is not the folder of a run with checkpoints; leave --round out")
    if round_ not in checkpoints:
        there = ", ".join(map(str, checkpoints))
        raise UserError(f"round: {given} has no checkpoint of round {round_}; it has those of {there}")
    return find_adapters([str(checkpoints[round_])])


def to_merge(
    found: Sequence[SavedAdapter], client: int | None, peer: int | Literal["mean"] | None
) -> list[SavedAdapter]:
    """The adapters whose mean is wanted; mostly a single one.

    Args:
        found: Those of one checkpoint, or of one folder.
        client: The client whose own adapter is wanted; None: the server's.
        peer: The peer whose adapter is wanted; None or "mean": all of them.

    Raises:
        UserError: There is no such client or peer.
    """
    clients = {_number(each, CLIENT): each for each in found if _is(each, CLIENT)}
    peers = {_number(each, PEER): each for each in found if _is(each, PEER)}
    if client is not None:
        if client not in clients:
            those = (
                f"those of {_listed(clients)} do" if clients else "nobody does: what clients train is shared"
            )
            raise UserError(f"client: {client} has no adapter of its own in {_where(found)}; {those}")
        return [clients[client]]
    if peer is not None and not peers:
        raise UserError(f"peer: there are no peers in {_where(found)}; leave --peer out")
    if isinstance(peer, int):
        if peer not in peers:
            raise UserError(f"peer: there is no peer {peer} in {_where(found)}; there are {_listed(peers)}")
        return [peers[peer]]
    if clients:
        log.warning(
            "clients have adapters of their own (%s), and this is the server's, without what is personal; "
            "--client N takes a client's",
            _listed(clients),
        )
    return list(peers.values()) or [found[0]]


def base_of(adapters: Sequence[tuple[SavedAdapter, PeftConfig]], given: str | None) -> str:
    """The model that adapters belong to: the one given, their run's, or the one that they themselves name.

    Raises:
        UserError: Nobody says which, or they do not agree.
    """
    if given is not None:
        return given
    runs = {each.run for each, _ in adapters if each.run is not None}
    names = {options_of_run(run)["model_name"] for run in runs} - {None}
    named = next(iter(names)) if len(names) == 1 else named_base(adapters)
    if named is None:
        raise UserError(
            f"model_name: no file beside {adapters[0][0].folder / CONFIG_FILE} says which; give it"
        )
    return named


def named_base(adapters: Sequence[tuple[SavedAdapter, PeftConfig]]) -> str | None:
    """The base that adapters' own configurations name; by its alias where it has one.

    Raises:
        UserError: They name several.
    """
    names = {config.base_model_name_or_path for _, config in adapters} - {None, ""}
    if len(names) > 1:
        raise UserError(
            f"adapter: these are of different models ({', '.join(sorted(names))}); give --model_name"
        )
    aliases = {alias.hub: name for name, alias in ALIASES.items()}
    return next((aliases.get(name, name) for name in names), None)


def _is(adapter: SavedAdapter, kind: str) -> bool:
    return adapter.folder.name.startswith(kind)


def _number(adapter: SavedAdapter, kind: str) -> int:
    number = adapter.folder.name.removeprefix(kind)
    return int(number) if number.isdecimal() else 0


def _where(found: Sequence[SavedAdapter]) -> str:
    return found[0].name


def _listed(numbered: dict[int, SavedAdapter]) -> str:
    numbers = sorted(numbered)
    more = f", … {numbers[-1]}" if len(numbers) > 8 else ""
    return ", ".join(map(str, numbers[:8])) + more
