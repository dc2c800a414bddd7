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
from fedloom.model.wave import StackedDropout, Wave, replace_module

log = logging.getLogger(__name__)

_STACKED = (StackedLora, StackedDropout)


class ReadRows(nn.Module):
    """A frozen module of the last layer, computed for the rows that will be read; the others are 0.

    Attributes:
        base: Maps ``[..., d_in]`` to ``[..., d_out]``, row by row.
        others: What the other rows are instead, while it is found out whether anybody looks at them.
    """

    others = 0.0

    def __init__(self, base: nn.Module, wave: Wave):
        super().__init__()
        self.base = base
        self._wave = wave

    def forward(self, x: Tensor) -> Tensor:
        """``base(x)`` at the wave's rows; everywhere outside a pass."""
        rows = self._wave.rows
        if rows is None:
            return self.base(x)
        read = self.base(x.reshape(-1, x.shape[-1]).index_select(0, rows)[None])[0]
        every = read.new_full((x.shape[:-1].numel(), read.shape[-1]), self.others).index_copy_(0, rows, read)
        # No view where none is needed: a low-rank term may be added to it in place.
        return every if x.ndim == 2 else every.view(*x.shape[:-1], -1)


@torch.no_grad()
def read_only_labels(layer: nn.Module, wave: Wave, run: Callable[[], object], draws: Draws | None) -> None:
    """Put `ReadRows` around whatever of ``layer`` can do with the rows that are read, in place.

    Args:
        layer: The model's last.
        wave: Tells which rows are read.
        run: Runs a small pass. The layer is tried on what reaches it there.
        draws: Dropout of that pass; None where the model drops nothing.
    """

    def try_all(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook.remove()

        def read() -> Tensor:
            out = module.forward(*args, **kwargs)
            states = out if isinstance(out, Tensor) else out[0]
            return states.reshape(-1, states.shape[-1])[wave.rows]

        _restrict(layer, wave, read, draws)

    hook = layer.register_forward_pre_hook(try_all, with_kwargs=True)
    try:
        run()
    except Exception as error:  # a layer that may not be called twice in a pass; nothing is lost
        log.info("the last layer works on every token: %s", error)
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
        untried += _children(name, module)


def _children(name: str, module: nn.Module) -> Iterator[str]:
    return (f"{name}.{child}" for child, _ in module.named_children())


def _unread(
    narrow: ReadRows, wave: Wave, read: Callable[[], Tensor], expected: Tensor, draws: Draws | None
) -> bool:
    """Whether nobody looks at the other rows: what stands there then changes not a bit, in any dtype."""
    try:
        with_zeros = read()
        narrow.others = 1.0
        with_ones = read()
        wave.draws = draws
        read()  # dropout that a module calls as a function would miss the other rows
    except Exception:  # whatever an architecture does with a module that is not its own
        return False
    finally:
        narrow.others, wave.draws = 0.0, None
    return torch.equal(with_zeros, with_ones) and torch.allclose(with_zeros, expected, rtol=0.05, atol=0.05)
