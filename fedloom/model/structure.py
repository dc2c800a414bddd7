"""A model without its weights: which modules it has and of what shape, and how much it reads.

It is there in some 30 milliseconds whatever the model's size, so that an adapter, a tokenizer and the data
can be held against a model before its weights are read.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from fedloom.model.trunk import position_offset

# Rotations that are stretched by a factor beyond the positions that the configuration counts. (Others, such
# as llama3 and longrope, count them in.)
_STRETCHED = ("linear", "dynamic", "yarn")

_POSITIONS = re.compile(r"(?:^|[._])(?:wpe|pos|positions?)(?:[._]|$)")


def without_weights(
    config: PretrainedConfig, num_labels: int | None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model that a configuration describes, on the meta device: it cannot compute.

    Args:
        config: The model's configuration; it is not changed.
        num_labels: None for a causal language model; else a sequence classifier with that many classes.
        trust_remote_code: Whether code that comes with the model may run.
    """
    config = copy.deepcopy(config)
    auto = AutoModelForCausalLM
    if num_labels is not None:
        config.num_labels, auto = num_labels, AutoModelForSequenceClassification
    # How the weights are stored is no matter here.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def setting(config: PretrainedConfig, name: str) -> Any:
    """What a configuration says of the part that reads text; None where it says nothing.

    Some configurations have no such field, and some raise where a value differs from layer to layer.
    """
    try:
        return getattr(config.get_text_config(), name, None)
    except (ValueError, AttributeError, RuntimeError):
        return None


def size(config: PretrainedConfig, name: str, otherwise: int) -> int:
    """A size as a configuration gives it, the largest where layers differ; or else ``otherwise``."""
    value = setting(config, name)
    if isinstance(value, (list, tuple)):
        value = max((each for each in value if isinstance(each, int)), default=None)
    return value if isinstance(value, int) and value > 0 else otherwise


def rows_of(model: PreTrainedModel) -> int | None:
    """How many token ids a model has an embedding for; None where it embeds in another way."""
    try:
        return model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):
        return None


def positions_of(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have, virtual ones included; None where the model sets no limit.

    It is what the configuration counts. RoBERTa and its family skip the positions up to their pad token; a
    rotation that is stretched by a factor reaches as much farther.
    """
    counted = setting(model.config, "max_position_embeddings")
    if not isinstance(counted, int) or counted <= 0:
        return None
    counted -= position_offset(model.base_model)
    stretched = (
        int(rope["factor"] * (rope.get("original_max_position_embeddings") or counted))
        for rope in _rotations(setting(model.config, "rope_parameters"))
        if rope.get("rope_type", rope.get("type")) in _STRETCHED and rope.get("factor")
    )
    return max(counted, *stretched, 0)


def ends_with_its_positions(model: PreTrainedModel) -> bool:
    """Whether positions stand in a table, learnt or computed, that has no row for a later one.

    Rotations and relative positions go on, if beyond what the model has seen in its training.
    """
    tables = [
        (name, module.weight) for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    tables += [
        (name, buffer) for name, buffer in model.named_buffers() if buffer.ndim == 2 and len(buffer) > 1
    ]
    return any(_POSITIONS.search(name) for name, _ in tables)


def _rotations(parameters: Any) -> Iterator[dict[str, Any]]:
    """A model's rotations: one for all layers, or one for each kind of layer."""
    if isinstance(parameters, dict):
        yield parameters
        yield from (part for part in parameters.values() if isinstance(part, dict))
