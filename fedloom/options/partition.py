"""Who has which data, of every command that has clients: the options, and their check."""

from dataclasses import dataclass
from typing import Literal

from fedloom.errors import UserError
from fedloom.options.declare import option
from fedloom.options.idle import idle

Kind = Literal["iid", "dirichlet", "quantity", "shards", "by_field"]
"""How one data set is divided; see `fedloom.data.partition`."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Who has which data."""

    dataset_path_template: str | None = option(
        None,
        "a client's own training data, {i} (or {}) replaced by 1 to the number of clients, as `fedloom "
        "split` writes them, or jsonl, csv or parquet; none: the data set is divided here",
        path=True,
    )
    val_dataset_path_template: str | None = option(
        None,
        "validation data, the same for all, or each client's own with {i} (with a server all of them)",
        path=True,
    )
    partition: Kind = option(
        "iid",
        "how the training data are divided among the clients: iid: evenly; dirichlet: uneven in labels; "
        "quantity: uneven in size; shards: a few labels each; by_field: the examples of one value of a field "
        "stay together",
    )
    alpha: float = option(
        0.5, "Dirichlet concentration of dirichlet and quantity: small is uneven", above=0, maximum=1e6
    )
    min_size: int = option(1, "fewest training examples of a client", minimum=1, maximum=10**8)
    labels_per_client: int = option(
        2, "labels that a client sees, with partition shards", minimum=1, maximum=10**6
    )
    field: str | None = option(None, "field that keeps examples together, with partition by_field")


def idle_in_partition(config: Partition) -> list[str]:
    """What to say of options that have no effect on who has which data."""
    where, said = f"with partition {config.partition}", list[str]()
    if config.partition not in ("dirichlet", "quantity"):
        said += idle(config, ["alpha"], where)
    if config.partition != "shards":
        said += idle(config, ["labels_per_client"], where)
    return said


def check_partition(config: Partition) -> None:
    """Judge who has which data.

    Raises:
        UserError: Two options contradict each other.
    """
    check_field(config.partition, config.field)
    if config.dataset_path_template is not None and config.partition != "iid":
        raise UserError(
            f"partition: {config.partition} divides one data set, and dataset_path_template gives every "
            "client data of its own; leave one of them out"
        )


def check_field(partition: str, field: str | None) -> None:
    """Judge whether a field is given where the partition goes by one.

    Raises:
        UserError: It is, and the partition does not; or the other way round.
    """
    if (partition == "by_field") != (field is not None):
        raise UserError(
            f"partition is {partition} and field is {field or 'none'}; --field NAME goes with --partition "
            "by_field, and with no other."
        )
