"""The last layer works only where its output is read.

Of all tokens of a pass only those that predict a label are read after the last layer. Their keys and values
come from every token; the rest of the layer, most of its work, is needed for them alone. Which modules may be
held to them is found by trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.model.adapters.lora import StackedLora
from fedloom.model.dropout import Draws
from fedloom.model.pads import RealRows
from fedloom.model.wave import StackedDropout, Wave, replace_module

log = logging.getLogger(__name__)

_STACKED = (StackedLora, StackedDropout)


class ReadRows(nn.Module):
    """A frozen module of the last layer, computed for the rows that will be read; the others are 0.

    Attributes:
        base: Maps ``[..., d_in]`` to ``[..., d_out]``, row by row.
        others: What the other rows are instead, while it is found out whether anybody looks at them.
        narrowed: Whether it has been computed for some rows alone.
    """

    others, narrowed = 0.0, False

    def __init__(self, base: nn.Module, wave: Wave):
        super().__init__()
        self.base = base
        self._wave = wave

    def forward(self, x: Tensor) -> Tensor:
        """``base(x)`` at the wave's rows; everywhere outside a pass."""
        rows = self._wave.rows
        if rows is None:
            return self.base(x)
        self.narrowed = True
        read = self.base(x.reshape(-1, x.shape[-1]).index_select(0, rows)[None])[0]
        every = read.new_full((x.shape[:-1].numel(), read.shape[-1]), self.others).index_copy_(0, rows, read)
        # No view where none is needed: a low-rank term may be added to it in place.
        return every if x.ndim == 2 else every.view(*x.shape[:-1], -1)


@torch.no_grad()
def read_only_labels(
    layers: nn.ModuleList, wave: Wave, run: Callable[[], Tensor], draws: Draws | None
) -> None:
    """Put `ReadRows` around whatever of the last layer can do with the rows that are read, in place.

    Args:
        layers: The model's.
        wave: Tells which rows are read.
        run: Runs a small pass and gives the hidden states that are read; the layer is tried on what reaches
            it.
        draws: Dropout of that pass; None where the model drops nothing.
    """
    order: list[nn.Module] = []
    hooks = [layer.register_forward_pre_hook(lambda module, args: order.append(module)) for layer in layers]
    expected = run()
    for hook in hooks:
        hook.remove()
    last = layers[-1]
    if order[-1:] != [last] or order.count(last) > 1:
        return  # ALBERT's one layer is its own predecessor

    def try_all(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook.remove()

        def read() -> Tensor:
            out = module.forward(*args, **kwargs)
            states = out if isinstance(out, Tensor) else out[0]
            return states.reshape(-1, states.shape[-1])[wave.rows]

        _restrict(last, wave, read, draws)

    hook = last.register_forward_pre_hook(try_all, with_kwargs=True)
    try:
        run()
        if not torch.allclose(run(), expected, rtol=0.05, atol=0.05):
            raise ValueError("the trial differs")
    except Exception as error:  # a layer that may not be called twice in a pass
        log.info("the last layer works on every token: %s", error)
        for name, module in list(last.named_modules()):
            if isinstance(module, ReadRows):
                replace_module(last, name, module.base)
    finally:
        hook.remove()


def _restrict(layer: nn.Module, wave: Wave, read: Callable[[], Tensor], draws: Draws | None) -> None:
    expected = read()
    untried = [name for name, _ in layer.named_children()]
    while untried:
        name = untried.pop()
        module = layer.get_submodule(name)
        if not any(weight.dim() > 1 for weight in module.parameters()):
            continue
        if not any(isinstance(part, _STACKED) for part in module.modules()):
            narrow = ReadRows(module, wave)
            replace_module(layer, name, narrow)
            if _unread(narrow, wave, read, expected, draws):
                continue
            replace_module(layer, name, module)
        # Within `RealRows` the rows that are read have other places.
        untried += () if isinstance(module, RealRows) else _children(name, module)


def _children(name: str, module: nn.Module) -> Iterator[str]:
    return (f"{name}.{child}" for child, _ in module.named_children())


def _unread(
    narrow: ReadRows, wave: Wave, read: Callable[[], Tensor], expected: Tensor, draws: Draws | None
) -> bool:
    """Whether nobody looks at the other rows: what stands there then changes not a bit, in any dtype."""
    narrow.narrowed = False
    try:
        with_zeros = read()
        narrow.others = 1.0
        with_ones = read()
        if draws is not None:
            wave.draws = draws
            read()  # dropout that a module calls as a function would miss the other rows
    except Exception:  # whatever an architecture does with a module that is not its own
        return False
    finally:
        narrow.others, wave.draws = 0.0, None
    same = torch.equal(with_zeros, with_ones)
    return narrow.narrowed and same and torch.allclose(with_zeros, expected, rtol=0.05, atol=0.05)
