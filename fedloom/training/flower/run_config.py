"""The options of a run as Flower's run config: numbers, text and truth values, no null."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fedloom.errors import UserError
from fedloom.options.check_flower import check
from fedloom.options.declare import Option, options
from fedloom.options.flower import FlowerConfig
from fedloom.options.synonyms import did_you_mean

_NOT_IN_AN_APP = ("config", "output_path", "token", "signing_key", "hub_url")
_NONE = "none"


def options_of_an_app() -> dict[str, Option]:
    """The options that stand in an app's run config, by name. The hub token does not; there is HF_TOKEN."""
    return {option.name: option for option in options(FlowerConfig) if option.name not in _NOT_IN_AN_APP}


def to_run_config(config: FlowerConfig) -> dict[str, Any]:
    """The options as Flower keeps them."""
    values = {name: getattr(config, name) for name in options_of_an_app()}
    return {name: _NONE if value is None else value for name, value in values.items()}


def from_run_config(values: Mapping[str, Any]) -> FlowerConfig:
    """The options of a run config, judged.

    Raises:
        UserError: An unknown name, or a value that breaks its rule.
    """
    known = options_of_an_app()
    for name in values:
        if name not in known:
            raise UserError(f"run config: unknown option {name}{did_you_mean(name, known)}")
    given: dict[str, Any] = {
        name: None if value == _NONE and known[name].nullable else value for name, value in values.items()
    }
    for name, value in given.items():
        if not known[name].allows(value):
            raise UserError(f"run config: {known[name].explain(value)}")
    config = FlowerConfig(**given, token=os.environ.get("HF_TOKEN") or None)
    check(config)
    return config
