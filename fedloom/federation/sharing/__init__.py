"""Which parameters of an adapter are shared; the others are personal: trained, and kept by the client they
belong to.

Every file beside this one is one choice, a function of the adapter's names: ``names -> those that are
shared``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from fedloom.errors import UserError

Sharing = Callable[[Collection[str]], frozenset[str]]

_LAYER = re.compile(r"\.(\d+)\.")


def last_layers(names: Collection[str], count: int) -> frozenset[str]:
    """Those of an adapter's names that belong to its last layers, and all that belong to none.

    A layer is the first number in the name of a factor of LoRA; what is no such factor, such as a
    classification head, is above all layers.

    Args:
        names: Of an adapter.
        count: Layers.
    """
    found = {name: _LAYER.search(name) if ".lora_" in name else None for name in names}
    layers = sorted({int(match[1]) for match in found.values() if match})
    last = layers[len(layers) - min(count, len(layers)) :]
    return frozenset(name for name, match in found.items() if match is None or int(match[1]) in last)


def whole_number(name: str, layers: float) -> int:
    """A number of layers.

    Raises:
        UserError: It is no whole number from 0.
    """
    if not layers.is_integer() or layers < 0:
        raise UserError(f"share: {name}:{layers:g} is no number of layers; give a whole one, as in {name}:1")
    return int(layers)
