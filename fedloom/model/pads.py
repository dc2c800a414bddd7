"""In a padded pass the products of tokens and weights are computed for real tokens alone.

A layer that carries a state from token to token, or whose attention nobody could pack, needs its rows side by
side, pads included. What works token by token does not: those modules are given the real tokens end to end,
and their results are put back. Which modules these are is found by trial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.model.wave import Wave, replace_module

_NOTICEABLE = 8.0


class RealRows(nn.Module):
    """A module that works token by token, computed for real tokens; at pads its result is 0.

    Attributes:
        base: Maps ``[..., d_in]`` to ``[..., d_out]``, row by row; stacked modules may stand in it.
        others: What stands at pads instead, while it is found out whether anybody looks at them.
        narrowed: Whether it has been given the tokens of a padded pass; a convolution is given channels.
    """

    others, narrowed = 0.0, False

    def __init__(self, base: nn.Module, wave: Wave):
        super().__init__()
        self.base = base
        self._wave = wave

    def __getattr__(self, name: str) -> Any:
        """What an architecture looks at is the module's own: the dtype of its weight, for one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``base(x)``, at the pads of a padded pass `others`."""
        real = self._wave.real
        if real is None or x.shape[:-1].numel() != self._wave.tokens or len(real) == self._wave.tokens:
            return self.base(x, *args, **kwargs)
        self.narrowed = True
        rows = x.reshape(-1, x.shape[-1]).index_select(0, real)[None]
        with self._wave.without_pads():
            y = self.base(rows, *args, **kwargs)[0]
        every = y.new_full((self._wave.tokens, y.shape[-1]), self.others).index_copy(0, real, y)
        return every.view(*x.shape[:-1], -1)


@torch.no_grad()
def skip_pads(
    model: nn.Module, layers_name: str, wave: Wave, run: Callable[[], Tensor], tolerance: float
) -> None:
    """Put `RealRows` around whatever of the layers works token by token, in place.

    Args:
        model: Holds the layers.
        layers_name: The dotted name of their list.
        wave: Tells which tokens are real.
        run: Runs a small padded pass of several clients and gives its logits.
        tolerance: How far apart two outcomes may be, relative.
    """
    layers = model.get_submodule(layers_name)
    expected = run()
    untried = sorted({name for layer in layers.children() for name, _ in layer.named_children()})
    while untried:
        name = untried.pop()
        found = {
            f"{layers_name}.{number}.{name}": module
            for number, layer in layers.named_children()
            if (module := dict(layer.named_modules()).get(name)) is not None
            and any(weight.dim() > 1 for weight in module.parameters())
        }
        if not found:
            continue
        narrow = {path: RealRows(module, wave) for path, module in found.items()}
        for path, module in narrow.items():
            replace_module(model, path, module)
        if _unread(list(narrow.values()), run, expected, tolerance):
            continue
        for path, module in found.items():
            replace_module(model, path, module)
        untried += sorted(
            {f"{name}.{child}" for module in found.values() for child, _ in module.named_children()}
        )


def _unread(narrow: list[RealRows], run: Callable[[], Tensor], expected: Tensor, tolerance: float) -> bool:
    """Whether all of them are given tokens, and nobody looks at the pads, whatever stands there."""
    for module in narrow:
        module.others, module.narrowed = _NOTICEABLE, False
    try:
        found = run()
    except Exception:  # whatever an architecture does with a module that is not its own
        return False
    finally:
        for module in narrow:
            module.others = 0.0
    near = (found - expected).norm() <= tolerance * expected.norm()
    return bool(near) and all(module.narrowed for module in narrow)
