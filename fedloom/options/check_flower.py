"""Judge the options of `fedloom flower`, before anything heavy is loaded; see `fedloom.options.check_fed`."""

from fedloom.errors import UserError
from fedloom.options.check_fed import check as check_fed
from fedloom.options.flower import FlowerConfig

NODE = "node"
"""The value of `client_data` that leaves the place to each SuperNode."""

WORDS = ("first", "any")
"""The values of `client_keys` that are no path."""


def check(config: FlowerConfig) -> None:
    """Judge the options, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_fed(config)
    if config.train_mode == "local":
        raise UserError(
            "train_mode: local has no clients, so there is nothing for Flower to do; "
            "choose fed or fedGradFocus, or run `fedloom fed`"
        )
    if config.attack != "none":
        raise UserError(
            f"attack: {config.attack} is simulated in `fedloom fed`; clients over Flower are real ones, so "
            "leave attack out"
        )
    if config.min_clients is not None and config.min_clients > config.client_num:
        raise UserError(
            f"min_clients: {config.min_clients} is more than client_num {config.client_num}; "
            "lower min_clients or raise client_num"
        )
    for name in ("dataset_path_template", "val_dataset_path_template"):
        if getattr(config, name) is not None:
            raise UserError(
                f"{name}: over Flower every client reads its own data on its own machine; "
                "say where with client_data, and what the server validates on with data_dir"
            )
    if config.client_data is not None and config.partition != "iid":
        raise UserError(
            f"partition: {config.partition} divides one data set, and with client_data {config.client_data} "
            "every client has data of its own; leave one of them out"
        )
    if config.client_data not in (None, NODE) and "{i}" not in config.client_data:
        raise UserError(
            f"client_data: '{config.client_data}' is the same for all clients; write {{i}} where the "
            "client's number goes, such as data/client_{i}, or give node, or none"
        )
    if config.client_keys not in WORDS and "{i}" not in config.client_keys:
        raise UserError(
            f"client_keys: '{config.client_keys}' is one key for all clients; write {{i}} where the client's "
            "number goes, such as keys/client{i}.pub, or give first, or any"
        )
