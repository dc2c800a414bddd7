"""The options of `fedloom flower`; see `fedloom.options.fed`."""

from dataclasses import dataclass

from fedloom.options.declare import option
from fedloom.options.fed import FedConfig
from fedloom.options.method import sets_method


@dataclass(frozen=True, kw_only=True)
class OverFlower:
    """Flower."""

    client_data: str | None = option(
        None,
        "where clients keep their own training data: node (the path that each SuperNode's data-path gives), "
        "or a path with {i} for the client's number from 1; none: the data set, split as in fedloom fed",
        path=True,
    )
    client_keys: str = option(
        "first",
        "whose a client's number is: first (the key that gives it first keeps it, also after a resume), any "
        "(nobody's), or the path of public keys on the server, with {i} for the client's number from 1",
        free=True,
        path=True,
    )
    min_clients: int | None = option(
        None,
        "clients that must be there for a round to begin; default client_num_per_step",
        minimum=1,
        free=True,
        maximum=1_000_000,
    )
    join_timeout: float = option(
        300.0,
        "seconds to wait for all clients before the first round, and later where there are too few",
        above=0,
        free=True,
        maximum=1e7,
    )
    round_timeout: float = option(
        600.0,
        "seconds after which a round ends without the clients that have not answered",
        above=0,
        free=True,
        maximum=1e7,
    )
    output_path: str = option("flower-app", "folder to write, new or empty", free=True, path=True)
    signing_key: str | None = option(
        None,
        "Ed25519 key file; the app is signed with it, for SuperNodes that run nothing else",
        free=True,
        path=True,
    )
    hub_url: str = option(
        "http://127.0.0.1:8001", "where the SuperLink fetches a signed app, on its own machine", free=True
    )


@sets_method(server=True, deployed=True)
@dataclass(frozen=True, kw_only=True)
class FlowerConfig(FedConfig, OverFlower):
    """All options of `fedloom flower`, by their flat names."""

    @property
    def clients_needed(self) -> int:
        """`min_clients`, or its default."""
        return self.client_num_per_step if self.min_clients is None else self.min_clients
