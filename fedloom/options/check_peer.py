"""Judge the options of `fedloom peer`, before anything heavy is loaded; see `fedloom.options.check_fed`."""

import re

from fedloom.errors import UserError
from fedloom.options.check_fed import check_values
from fedloom.options.check_graph import check_layers, check_model
from fedloom.options.check_method import check_method
from fedloom.options.peer import PeerConfig
from fedloom.options.privacy import check_privacy

_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/(\d{1,5})")


def check(config: PeerConfig) -> None:
    """Judge the options, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_values(config)
    check_model(config)
    check_method(config, server=False)
    check_privacy(config, server=False)
    check_layers(config)
    for name, how in (
        ("identity", "make a key with `fedloom identity peer.key` and give its file"),
        ("neighbors", "give a YAML file with client, id and addresses of each neighbour"),
    ):
        if not getattr(config, name):
            raise UserError(f"{name}: is required; {how}")
    if config.client > config.num_clients:
        raise UserError(
            f"client: {config.client} is not one of {config.num_clients} peers (num_clients); "
            f"choose 1 to {config.num_clients}"
        )
    check_address("listen:", config.listen)


def check_address(what: str, address: object) -> None:
    """Judge an address.

    Args:
        what: Names it in the message.
        address: Such as ``/ip4/127.0.0.1/tcp/4001``.

    Raises:
        UserError: It is not one.
    """
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or int(match[2]) > 65535:
        raise UserError(f"{what} {address} is not of the form /ip4/HOST/tcp/PORT (or ip6, dns)")
