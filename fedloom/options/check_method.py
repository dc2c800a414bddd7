"""Judge the options that choose a method or its parts; see `fedloom.options.methods`."""

from typing import Any

from fedloom.errors import UserError, shown
from fedloom.options.methods import AUTO, METHODS, PARTS, chosen, method
from fedloom.options.parts import check_choice, is_plugged, load_plugins
from fedloom.options.synonyms import did_you_mean

_BY_NAME = {part.option: part for part in PARTS}


def check_method(config: Any, *, server: bool) -> None:
    """Judge the method and the parts, each for itself and together.

    Args:
        config: Options of a run.
        server: Whether it is one with a server.

    Raises:
        UserError: There is no such method or part, or it has no meaning there or beside others.
    """
    load_plugins(config.plugin)
    if config.method is not None:
        row = method(config.method)
        fitting = [other.name for other in METHODS if other.settings(server=server) is not None]
        if row is None:
            known = [other.name for other in METHODS]
            raise UserError(
                f"method: {shown(config.method)} is not one of {', '.join(known)}"
                f"{did_you_mean(config.method, known)} (`fedloom methods` says what each is)"
            )
        if row.settings(server=server) is None:
            where = "with a server" if server else "without a server"
            raise UserError(f"method: {row.name} has no meaning {where}; choose one of {', '.join(fitting)}")
    texts = {option: text for option, text in chosen(config).items() if hasattr(config, option)}
    for option, text in texts.items():
        check_choice(_BY_NAME[option], text)
    names = {option: text.partition(":")[0] for option, text in texts.items()}
    products = names["lora_aggregation"]
    if products != _BY_NAME["lora_aggregation"].default and names["share"] == "a":
        raise UserError(
            f"lora_aggregation: {products} needs both factors of every product, and share {names['share']} "
            "sends a part of the adapter; choose --share all, or --lora_aggregation factors"
        )
    # Only a plugin's own part may know more.
    folds = products in ("fedex", "flora") or is_plugged("lora_aggregation", products)
    if config.residual_rank is not None and not folds:
        raise UserError(
            f"residual_rank: {config.residual_rank} is of what fedex and flora change the base by, and "
            f"lora_aggregation {products} leaves it as it is; leave residual_rank out, or choose "
            "--lora_aggregation fedex"
        )
    _check_factors(names)
    if server:
        _check_with_server(config, names)
    else:
        _check_on_graph(config, names)


def _check_factors(names: dict[str, str]) -> None:
    trains = names["train_factors"]
    if trains == _BY_NAME["train_factors"].default:
        return
    if names["share"] in ("body", "head"):
        raise UserError(
            f"train_factors: {trains} says which factors of the shared model train, and share "
            f"{names['share']} leaves clients parameters of their own, which train whole; choose one of them"
        )
    for option in ("lora_aggregation", "share"):
        if names[option] not in (_BY_NAME[option].default, "fedsvd", "fedsb", "ravan"):
            raise UserError(
                f"train_factors: {trains} leaves one of LoRA's factors as it is, and {option} "
                f"{names[option]} needs both; choose one of the two"
            )


def _check_on_graph(config: Any, names: dict[str, str]) -> None:
    if names["train_factors"] == "square":
        raise UserError(
            "train_factors: square trains what is between factors that a server fixes, and peers without one "
            "mix A and B; choose --train_factors heads, or --training_type DFL-LoRA, whose A is one for all"
        )
    if names["train_factors"] == "heads" or names["lora_aggregation"] == "ravan":
        _check_fixed(names)
    if config.frozen_a and names["train_factors"] not in (_BY_NAME["train_factors"].default, "b"):
        raise UserError(
            f"train_factors: {names['train_factors']} beside training_type {config.training_type}, which "
            "freezes A for good; choose --training_type LoRA, or leave train_factors out"
        )
    if names["train_factors"] == "b" and not config.frozen_a:
        raise UserError("train_factors: b is DFL-LoRA on a graph; choose --training_type DFL-LoRA")
    if names["share"] == "a" and config.frozen_a:
        raise UserError(
            f"share: a sends LoRA's A alone, and training_type {config.training_type} freezes it, so that "
            "nothing would be sent; choose --training_type LoRA, or --share all"
        )
    if names["aggregator"] in ("median", "krum") and config.mixing_step != 1:
        raise UserError(
            f"mixing_step: {config.mixing_step:g} lowers the weights of neighbours, and "
            f"{names['aggregator']} has none; "
            "leave it out, or choose --aggregator mean"
        )


def _check_with_server(config: Any, names: dict[str, str]) -> None:
    if config.train_mode == "local":
        if config.method is not None:
            raise UserError(
                f"method: {shown(config.method)} is one of federation, and train_mode local trains one "
                "adapter on all data; leave one of the two out"
            )
        for option, name in names.items():
            given = getattr(config, option)
            if given != AUTO and name != _BY_NAME[option].default:
                raise UserError(
                    f"{option}: train_mode local trains one adapter on all data, and nothing is sent or "
                    f"combined, so {shown(given)} has no meaning; leave it out, or choose --train_mode fed"
                )
        return
    if names["client_rule"] in ("quasi_global", "gradient_tracking"):
        raise UserError(
            f"client_rule: {names['client_rule']} is about what neighbours send each other, and has no "
            "meaning with a server; choose scaffold, feddyn, proximal or none"
        )
    if names["client_rule"] == "ditto" and names["share"] != _BY_NAME["share"].default:
        raise UserError(
            f"client_rule: ditto gives every client a whole model of its own, and share {names['share']} a "
            "part of one; choose one of the two"
        )
    _check_fixed(names)
    lora_only = [
        option
        for option in ("share", "lora_aggregation", "train_factors")
        if names[option] != _BY_NAME[option].default
    ]
    for option in lora_only:
        if config.peft != "lora":
            raise UserError(
                f"{option}: {names[option]} is about LoRA's factors, and {config.peft} has none; "
                "choose --peft lora"
            )
    if names["share"] != _BY_NAME["share"].default and config.train_mode == "fedGradFocus":
        raise UserError(
            f"share: {names['share']} leaves every client a part of its own, which the server cannot score; "
            "choose --train_mode fed"
        )


def _check_fixed(names: dict[str, str]) -> None:
    """Refuse factors that are one for all and train, or what is between them beside others that do."""
    needed = {"fedsvd": "b", "fedsb": "square", "ravan": "heads"}.get(
        names["lora_aggregation"], names["train_factors"]
    )
    if names["train_factors"] != needed:
        raise UserError(
            f"lora_aggregation: {names['lora_aggregation']} needs factors that are one for all, and "
            f"train_factors {names['train_factors']} lets clients train them; choose --train_factors {needed}"
        )
    fixes = {"square": "fedsb", "heads": "ravan"}.get(names["train_factors"], names["lora_aggregation"])
    if names["lora_aggregation"] != fixes:
        raise UserError(
            f"train_factors: {names['train_factors']} trains what is between the factors that "
            f"lora_aggregation {fixes} fixes; choose --lora_aggregation {fixes}, or another train_factors"
        )
