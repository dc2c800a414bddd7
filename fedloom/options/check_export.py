"""Judge the options of `fedloom merge` and `fedloom chat`, before anything heavy is loaded."""

import re

from fedloom.errors import UserError, shown
from fedloom.options.check_fed import check_device, check_rules
from fedloom.options.export import ChatConfig, MergeConfig

_HUB_NAME = re.compile(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}")


def check_merge(config: MergeConfig) -> None:
    """Judge the options of `fedloom merge`, each for itself and together.

    Raises:
        UserError: A value breaks its rule, one is missing, or two options contradict each other.
    """
    check_rules(config)
    if config.adapter is None:
        raise UserError("adapter: is required: fedloom merge RUN --output_path FOLDER")
    if config.output_path is None:
        raise UserError("output_path: is required: fedloom merge RUN --output_path FOLDER")
    if config.client is not None and config.peer is not None:
        raise UserError(
            f"client: {config.client} is one of a run with a server, and peer {config.peer} one of a run "
            "without; leave one of the two out"
        )
    if config.push_to_hub is not None and not _HUB_NAME.fullmatch(config.push_to_hub):
        raise UserError(
            f"push_to_hub: {shown(config.push_to_hub)} is no name on the hub; write owner/model, such as "
            "my-name/my-model"
        )


def check_chat(config: ChatConfig) -> None:
    """Judge the options of `fedloom chat`, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or one is missing.
    """
    check_rules(config)
    check_device(config.device)
    if config.adapter is None:
        raise UserError("adapter: is required: fedloom chat RUN")
