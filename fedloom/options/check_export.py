"""Judge the options of commands on saved adapters, before anything heavy is loaded."""

import re

from fedloom.errors import UserError, shown
from fedloom.options.check_fed import check_device, check_prompts, check_rules
from fedloom.options.evaluation import EvalConfig
from fedloom.options.export import ChatConfig, MergeConfig
from fedloom.options.own_data import check_own_data
from fedloom.options.run import PROMPT_DATE

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


def check_eval(config: EvalConfig) -> None:
    """Judge the options of `fedloom eval`, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_rules(config)
    check_device(config.device)
    check_own_data(config)
    check_prompts(config.prompt_format or "auto", config.prompt_date or PROMPT_DATE)
    for one, other in (("model_name", "model_checkpoint"), ("data_name", "dataset_type")):
        first, second = getattr(config, one), getattr(config, other)
        if first and second and first != second:
            raise UserError(
                f"{other}: {second} is another name of {one}, which is {first}; give one of the two"
            )
    if config.adapter is not None and not config.adapter_paths:
        raise UserError(f"adapter: {config.adapter!r} names no folder; give folders with commas between")
    if config.all_checkpoints and not config.adapter_paths:
        raise UserError("all_checkpoints: needs --adapter with a run's folder")
    if not config.adapter_paths:
        for name, value in (("model_name", config.model), ("data_name", config.task)):
            if value is None:
                raise UserError(f"{name}: is required where no --adapter of a run says which")
