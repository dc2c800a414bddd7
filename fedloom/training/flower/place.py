"""Which client a SuperNode is, and where its data lie: what its node config says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.options.check_flower import NODE
from fedloom.options.flower import FlowerConfig


def client_number(node: Mapping[str, Any], client_num: int) -> int:
    """The client's number, from 0: `client`, from 1, or Flower's own `partition-id`, from 0.

    Raises:
        UserError: There is none, or no client of this number.
    """
    partitions = node.get("num-partitions", client_num)
    if partitions != client_num:
        raise UserError(
            f"num-partitions is {partitions}, but client_num is {client_num}; set client_num={partitions}, "
            f"or in a simulation add --federation-config 'num-supernodes={client_num}'"
        )
    for name, first in (("client", 1), ("partition-id", 0)):
        if name in node:
            number = node[name]
            if type(number) is not int or not first <= number < client_num + first:
                raise UserError(
                    f"{name} in the node config is {number!r}; client_num is {client_num}, so it must be "
                    f"a whole number from {first} to {client_num - 1 + first}"
                )
            return number - first
    raise UserError(
        "a SuperNode does not say which client it is; start it with --node-config 'client=1', counted from 1"
    )


def insists(node: Mapping[str, Any]) -> bool:
    """Whether a client's owner lets it take part in secure aggregation alone.

    Raises:
        UserError: The node config asks for something that is not known.
    """
    given = node.get("secure-aggregation", "")
    if given not in ("", "required"):
        raise UserError(
            f"secure-aggregation in the node config is {given!r}; write required, or leave it out"
        )
    return given == "required"


def check_insisted(node: Mapping[str, Any], config: FlowerConfig) -> None:
    """Make sure that a run has what its client's owner insists on: the run config is the server's to change.

    Raises:
        UserError: It has not, or the node config asks for something that is not known.
    """
    if insists(node) and config.secure_aggregation is None:
        raise UserError(
            "this client takes part in secure aggregation alone (its node config says so); set "
            "secure_aggregation=1 in the run config"
        )


def own_data(node: Mapping[str, Any], client_data: str | None, client: int) -> Path | None:
    """The client's own training data; None where they are a part of the data set.

    Raises:
        UserError: The run and the node do not agree about it.
    """
    given = node.get("data-path")
    if client_data is None:
        if given is not None:
            raise UserError(
                f"client {client + 1} has a data-path, but client_data is none, so its data would not be "
                "used; set client_data=node, or leave data-path out of the node config"
            )
        return None
    if given is not None:
        path = Path(str(given))
    elif client_data == NODE:
        raise UserError(
            f"client {client + 1} has no data; client_data is node, so start its SuperNode with "
            "--node-config 'client=… data-path=\"…\"'"
        )
    else:
        path = Path(client_data.replace("{i}", str(client + 1)))
    if not path.exists():
        raise UserError(f"client {client + 1}: its data '{path}' do not exist on its machine")
    return path
