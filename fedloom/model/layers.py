"""Find a transformer's layers by structure, not by a table of paths."""

import re
from typing import Any

from torch import nn

from fedloom.errors import UserError


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of a transformer's layers (decoder's or encoder's).

    Found by structure: of the lists whose elements are of one class, or of as many as the configuration
    counts hidden layers (of several classes where layers take turns, as in hybrids), that of so many which
    lies in no other list comes first (a layer's experts may be as many), then the one with the most
    parameters.

    Raises:
        UserError: the model has no such list.
    """
    config: Any = model.config
    expected = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and (len(module) == expected or len({type(layer) for layer in module}) == 1)
    ]
    if not lists:
        raise UserError(
            f"model {type(model).__name__}: it holds no list of like layers. Choose a transformer model."
        )

    def rank(named: tuple[str, nn.ModuleList]) -> tuple[bool, int]:
        name, module = named
        nested = any(name.startswith(f"{other}.") for other, _ in lists)
        return len(module) == expected and not nested, sum(
            parameter.numel() for parameter in module.parameters()
        )

    return max(lists, key=rank)


def layer_of(parameter_name: str, layers_name: str) -> int | None:
    """The index of the layer a parameter belongs to, or None outside the layers.

    `layers_name` is the one `decoder_layers` gives; the parameter's name may carry a prefix, as PEFT's do:
    `layer_of("base_model.model.model.layers.7.mlp.up_proj.weight", "model.layers")` is 7.
    """
    match = re.search(rf"(?:^|\.){re.escape(layers_name)}\.(\d+)(?:\.|$)", parameter_name)
    return int(match.group(1)) if match else None
