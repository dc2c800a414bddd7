"""Layer scores over rounds as a picture, for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# Dark to light, so that it reads in grey and by colour-blind eyes too.
_STOPS = np.array([(18, 13, 49), (101, 21, 110), (186, 54, 85), (249, 142, 9), (252, 255, 164)], dtype=float)
_SELECTED = (64, 196, 255)
_WIDEST, _CELL = 512, 8


def heatmap(
    scores: Sequence[Sequence[float | None]], selected: Sequence[Sequence[int]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a column per round, a row per layer, layer 0 at the top; a selected layer has a blue edge.

    Colours are relative to the round's own highest score, because gradients shrink as training goes on. Of
    more than 512 rounds, as many are drawn at even distances.

    Args:
        scores: For each round the layers' scores; None, or nan, for a layer that has none.
        selected: For each round the layers that were selected.
    """
    rounds = np.linspace(0, len(scores) - 1, min(len(scores), _WIDEST)).round().astype(int)
    values = np.nan_to_num(np.array([scores[i] for i in rounds], dtype=float)).T
    relative = values / np.maximum(values.max(axis=0), np.finfo(float).tiny)
    places = np.linspace(0, 1, len(_STOPS))
    colours = np.stack([np.interp(relative, places, channel) for channel in _STOPS.T], axis=-1)
    picture = colours.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    for column, i in enumerate(rounds):
        for row in selected[i]:
            picture[row * _CELL : (row + 1) * _CELL, column * _CELL : column * _CELL + 2] = _SELECTED
    return picture.round().astype(np.uint8)
