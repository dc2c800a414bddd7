"""The neighbour file: whom a peer talks to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.options.check_peer import check_address
from fedloom.options.synonyms import did_you_mean
from fedloom.options.yaml_file import read_yaml

_FIELDS = ("client", "id", "addresses")
_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{46,60}")


@dataclass(frozen=True)
class Neighbor:
    """A peer at the other end of an edge.

    Attributes:
        client: Its number, from 1.
        id: Its libp2p identity, as `fedloom identity` prints it.
        addresses: Where it listens, as multiaddrs.
    """

    client: int
    id: str
    addresses: tuple[str, ...]


def read_neighbors(path: Path, own_client: int, clients: int) -> dict[int, Neighbor]:
    """Read a neighbour file: a list of `client`, `id` and `addresses`.

    Args:
        path: Of the file.
        own_client: The number of the peer whose file it is, from 1.
        clients: How many peers there are.

    Returns:
        The neighbours by their numbers, in ascending order.

    Raises:
        UserError: The file cannot be read, or is not such a list; the message says which entry.
    """
    try:
        content = read_yaml(path, f"write a list of {', '.join(_FIELDS)}").content
    except UserError as error:
        raise UserError(f"neighbors: {error}") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"neighbors: {path} must be a list, with {', '.join(_FIELDS)} for each neighbour")
    found: dict[int, Neighbor] = {}
    for number, entry in enumerate(content, start=1):
        neighbor = _neighbor(f"neighbors: {path}, entry {number}", entry, clients)
        if neighbor.client == own_client:
            raise UserError(f"neighbors: {path} has client {own_client}, which is this peer; leave it out")
        if neighbor.client in found or neighbor.id in {known.id for known in found.values()}:
            raise UserError(f"neighbors: {path} has client {neighbor.client} or its id twice; leave one out")
        found[neighbor.client] = neighbor
    return dict(sorted(found.items()))


def _neighbor(where: str, entry: Any, clients: int) -> Neighbor:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must have {', '.join(_FIELDS)}")
    for name in entry:
        if name not in _FIELDS:
            raise UserError(f"{where}: unknown field {name}{did_you_mean(name, _FIELDS)}")
    missing = [name for name in _FIELDS if name not in entry]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing; give {', '.join(_FIELDS)}")
    client, identity, addresses = (entry[name] for name in _FIELDS)
    if type(client) is not int or not 1 <= client <= clients:
        raise UserError(f"{where}: client {client} is not a number from 1 to {clients} (num_clients)")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise UserError(f"{where}: id {identity} is no identity; copy what `fedloom identity` prints")
    listed = addresses if isinstance(addresses, list) else [addresses]
    if not listed:
        raise UserError(f"{where}: addresses is empty; give at least one")
    for address in listed:
        check_address(f"{where}: address", address)
    return Neighbor(client, identity, tuple(listed))
