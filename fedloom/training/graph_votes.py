"""From options to how peers vote on the layers of a round."""

from __future__ import annotations

import logging
from functools import partial

from fedloom.errors import UserError
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.layer_votes import LayerVotes
from fedloom.federation.priority import Projection
from fedloom.model.adapters.lora import frozen_weight
from fedloom.model.bank import Row
from fedloom.model.stacked import StackedModel
from fedloom.options.methods import chosen
from fedloom.training.graph_data import Setting

log = logging.getLogger(__name__)


def check_votes(config: Setting, algorithm: Algorithm) -> None:
    """Judge what peers that vote on layers combine with it.

    Raises:
        UserError: A part is about all parameters in every round.
    """
    if config.layer_votes == "none":
        return
    texts = chosen(config)
    beside = {
        "compress": algorithm.codec.lossy,
        "aggregator": algorithm.aggregator is not weighted_mean and texts["lora_aggregation"] == "factors",
        "lora_aggregation": texts["lora_aggregation"] != "factors",
        "client_rule": algorithm.rule.mixed is not None or algorithm.rule.remembers,
    }
    for option, meaningless in beside.items():
        if meaningless:
            raise UserError(
                f"layer_votes: {config.layer_votes} leaves layers out of a link's round, and {option} "
                f"{texts[option]} is about all of them in every round; leave {option} out, or choose "
                "--layer_votes none"
            )


def layer_votes(config: Setting, model: StackedModel, frozen: Row) -> LayerVotes | None:
    """How peers choose the layers of a round; None where they train and send all."""
    if config.layer_votes == "none":
        return None
    layers = scored_layers(model)
    highest = -(-len(layers) // 4) if config.max_layer_num is None else config.max_layer_num
    if highest + config.min_layer_num >= len(layers):
        log.warning(
            "layer_votes: max_layer_num %d and min_layer_num %d select all %d layers of the model, so that "
            "peers send as much as without votes",
            highest,
            config.min_layer_num,
            len(layers),
        )
    return LayerVotes(
        layers,
        highest,
        config.min_layer_num,
        config.grad_eval,
        config.layer_votes,
        config.rest_layers,
        config.seed,
        frozen,
    )


def scored_layers(model: StackedModel) -> dict[int, list[Projection]]:
    """The adapted projections of every layer that has some, by its number, as scores need them."""
    return {
        layer: [
            Projection(f"{name}.lora_A.weight", f"{name}.lora_B.weight", scale, partial(frozen_weight, base))
            for name, scale, base in projections
        ]
        for layer, projections in model.adapted.items()
    }
