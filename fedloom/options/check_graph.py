"""Judge the options of `fedloom dfl`, before anything heavy is loaded; see `fedloom.options.check_fed`."""

from dataclasses import fields

from fedloom.errors import UserError, shown
from fedloom.options.attack import check_attack
from fedloom.options.check_fed import check_rules, check_target_modules, check_values
from fedloom.options.check_method import check_method
from fedloom.options.graph import DflConfig, LayerPriority, PeerModel, SplitConfig
from fedloom.options.idle import idle
from fedloom.options.methods import chosen
from fedloom.options.own_data import check_own_data
from fedloom.options.partition import Partition, idle_in_partition
from fedloom.options.parts import is_plugged
from fedloom.options.peer import PeerConfig
from fedloom.options.privacy import check_privacy


def check(config: DflConfig) -> None:
    """Judge the options, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or two options contradict each other.
    """
    check_values(config)
    check_model(config)
    check_method(config, server=False)
    check_attack(config, config.num_clients)
    check_privacy(config, server=False)
    check_layers(config)


def without_effect(config: DflConfig | PeerConfig) -> list[str]:
    """What to say of options that belong to choices that are not made."""
    said = idle_in_partition(config) if isinstance(config, Partition) else []
    if config.layer_votes == "none":
        names = {field.name for field in fields(LayerPriority)} - {"layer_votes"}
        said += idle(config, names, "without votes on layers")
    products = chosen(config)["lora_aggregation"]
    if config.frozen_a and products != "factors" and not is_plugged("lora_aggregation", products):
        where = f"with training_type {config.training_type}: the mean of B under one A for all is exact"
        said.append(f"lora_aggregation: {shown(products)} has no effect {where}")
        said += idle(config, ["residual_rank"], where)
    return said


def check_layers(config: LayerPriority) -> None:
    """Judge how peers choose layers.

    Raises:
        UserError: They would choose none.
    """
    if config.layer_votes != "none" and config.max_layer_num == 0 == config.min_layer_num:
        raise UserError(
            f"layer_votes: {config.layer_votes} selects no layer with max_layer_num 0 and min_layer_num 0; "
            "raise one of them"
        )


def check_split(config: SplitConfig) -> None:
    """Judge the options of `fedloom split`.

    Raises:
        UserError: A value breaks its rule.
    """
    check_rules(config)
    check_own_data(config)


def check_model(config: PeerModel) -> None:
    """Judge the model and its adapter, as `check` does.

    Raises:
        UserError: There is no model, or no layer is named.
    """
    if not config.model_checkpoint:
        raise UserError(
            "model_checkpoint: is required; name a model on the hub, a local folder, a GGUF file, "
            "smollm2-135m or minilm"
        )
    check_target_modules(config.target_modules)
