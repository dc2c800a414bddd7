"""What the stacked modules need to know of the wave that is passing through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from fedloom.model.dropout import Draws


@dataclass
class Wave:
    """The clients in the current pass: their parameters, their shares of the tokens, their dropout.

    One object, shared by all stacked modules of a model; `through` sets it for one pass.

    Attributes:
        parameters: ``{name: tensor[clients, *shape]}``; empty outside a pass, and then every stacked
            module is its frozen base.
        units: Rows (padded), tokens (packed) or label positions (heads) of each client.
        draws: Where dropout masks come from; None turns dropout off.
        rows: Tokens of the pass whose last hidden state is read; None: all of them.
    """

    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    units: tuple[int, ...] = ()
    draws: Draws | None = None
    rows: Tensor | None = None

    def lengths(self, tokens: int) -> tuple[int, ...]:
        """Tokens of each client, when ``tokens`` in all are laid out client by client.

        Raises:
            ValueError: when the tokens are no whole multiple of the units.
        """
        per_unit, rest = divmod(tokens, sum(self.units))
        if rest:
            raise ValueError(f"{tokens} tokens cannot be shared out over units {self.units}")
        return tuple(units * per_unit for units in self.units)

    def keep(self, x: Tensor, probability: float) -> Tensor | None:
        """Dropout factors for ``x`` ``[tokens, features]``: 0 or 1 / (1 - p); None keeps everything."""
        if self.draws is None or probability == 0.0:
            return None
        return self.draws.keep(x, probability)

    @contextmanager
    def through(
        self,
        parameters: Mapping[str, Tensor],
        units: tuple[int, ...],
        draws: Draws | None = None,
        rows: Tensor | None = None,
    ) -> Iterator[None]:
        """Let the stacked modules see these clients for the length of the block."""
        before = self.parameters, self.units, self.draws, self.rows
        self.parameters, self.units, self.draws, self.rows = parameters, units, draws, rows
        try:
            yield
        finally:
            self.parameters, self.units, self.draws, self.rows = before


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` at the dotted ``name`` below ``root``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


class StackedDropout(nn.Module):
    """Takes the place of a base model's ``nn.Dropout``; draws for each client apart.

    Attributes:
        p: Probability with which a number is dropped.
    """

    def __init__(self, p: float, wave: Wave):
        super().__init__()
        self.p = p
        self._wave = wave

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., features]`` with dropout, where the pass asks for it."""
        flat = x.reshape(-1, x.shape[-1])
        keep = self._wave.keep(flat, self.p)
        return x if keep is None else x * keep.view_as(x)
