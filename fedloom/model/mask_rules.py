"""An architecture's own rule of which token sees which, taken where transformers would make a mask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fedloom.model.buckets import Rule


@dataclass(frozen=True, eq=False)
class MaskRule:
    """An architecture's own rule of who sees whom; where others have a mask, packed attention has this.

    Attributes:
        function: transformers' mask function, ``(batch, head, query, key) -> bool``, of positions.
        device: Where tensors that it holds lie.
    """

    function: Callable[..., Tensor]
    device: torch.device | str

    # What architectures look at before they pass a mask on: a tensor of no axes has nothing to slice.
    ndim = 0

    def to(self, *args: Any, **kwargs: Any) -> MaskRule:
        """Itself: a rule has no dtype."""
        return self

    def __getitem__(self, places: tuple[slice, ...]) -> MaskRule:
        """Itself, where all of it is asked for.

        Raises:
            ValueError: a part is asked for.
        """
        if any(place.start or place.stop is not None or place.step is not None for place in places):
            raise ValueError("this architecture's attention cannot be packed: it cuts its mask")
        return self

    def __call__(self, query: Tensor, key: Tensor) -> Bool[Tensor, "queries keys"]:
        """What queries at some positions ``[queries, 1]`` see of keys at others ``[keys]``."""
        zero = torch.zeros((), dtype=torch.long, device=self.device)
        seen = self.function(zero, zero, query.to(self.device), key.to(self.device))
        return torch.broadcast_to(seen, (query.shape[0], key.shape[0])).cpu()


def mask_rule(
    *, mask_function: Callable[..., Tensor], use_vmap: bool = False, device: Any = "cpu", **kwargs: Any
) -> MaskRule:
    """What transformers calls in place of making a mask; see `transformers.AttentionMaskInterface`.

    Raises:
        ValueError: when the architecture adds a rule that looks at more than positions.
    """
    if use_vmap:
        raise ValueError("this architecture's attention cannot be packed: its mask depends on the tokens")
    return MaskRule(mask_function, device)


def window_rule(window: int) -> Rule:
    """A token sees itself and what is less than ``window`` tokens away."""
    return lambda query, key: (query - key).abs() < window
