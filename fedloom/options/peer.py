"""The options of a real peer over libp2p, and of the tools around it; see `fedloom.options.fed`."""

from dataclasses import dataclass

from fedloom.options.declare import option
from fedloom.options.graph import LayerPriority, PeerData, PeerModel, PeerReports, PeerTraining
from fedloom.options.lora_variants import LoraVariants
from fedloom.options.method import AnyMethod, GraphMethod, sets_method
from fedloom.options.own_data import OwnData, Preferences
from fedloom.options.partition import Partition
from fedloom.options.privacy import Privacy
from fedloom.options.run import Hardware, Prompts, Run


@dataclass(frozen=True, kw_only=True)
class PeerNode:
    """This peer."""

    identity: str | None = option(
        None,
        "key file of this peer, required; `fedloom identity FILE` makes one",
        free=True,
        path=True,
    )
    listen: str = option("/ip4/127.0.0.1/tcp/4001", "address to listen on, as a multiaddr", free=True)
    neighbors: str | None = option(
        None,
        "YAML file, required: client, id and addresses of each neighbour",
        free=True,
        path=True,
    )
    client: int = option(1, "number of this peer, from 1", minimum=1, maximum=16_384)
    num_clients: int = option(7, "peers in all", minimum=2, maximum=16_384)
    mix_head: bool = option(True, "average the classification head too; false: it stays with its peer")
    round_timeout: float = option(
        60.0,
        "seconds that a neighbour is waited for in a round; who is later is left out, and not waited for "
        "again until it says something",
        above=0,
        free=True,
        maximum=1e7,
    )
    max_move: float = option(
        1.0,
        "how far one neighbour may move this peer's numbers in a round, as a root mean square; what is more "
        "is scaled down at both ends alike; 0: no bound",
        minimum=0,
        maximum=1e6,
    )


@sets_method(server=False, deployed=True)
@dataclass(frozen=True, kw_only=True)
class PeerConfig(
    Run,
    Hardware,
    PeerNode,
    PeerModel,
    LoraVariants,
    PeerData,
    OwnData,
    Preferences,
    Partition,
    Prompts,
    AnyMethod,
    GraphMethod,
    LayerPriority,
    PeerTraining,
    Privacy,
    PeerReports,
):
    """All options of `fedloom peer`, by their flat names."""

    def __post_init__(self) -> None:
        # A probe may choose otherwise on each machine; the first adapter is rounded to the model's dtype.
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", "float32")


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Identity."""

    key: str = option("peer.key", "key file; made, readable for you alone, unless it is there", path=True)


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Audit."""

    runs: tuple[str, ...] = option((), "folders of the runs of all peers", path=True)
