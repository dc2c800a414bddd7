"""What the stacked modules need to know of the wave that is passing through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedloom.model import blocks
from fedloom.model.blocks import Blocks
from fedloom.model.dropout import Draws
from fedloom.model.layout import NotPerClient

Call = tuple[Tensor, Tensor, tuple[int, ...]]
"""Of a call of a LoRA module: a and b, a factor's gradient being Σ_t a_t b_tᵀ, and each example's tokens."""


@dataclass
class Examples:
    """Whose gradients are to be told apart in a pass; see `model.per_example`.

    Attributes:
        owners: The client of each example, in ascending order.
        clients: How many clients there are.
        held: What a backward pass keeps of each LoRA factor, by its name.
    """

    owners: tuple[int, ...]
    clients: int
    held: dict[str, list[Call]] = field(default_factory=dict)

    def by_client(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Tokens of each client, of those of each example."""
        total = [0] * self.clients
        for owner, length in zip(self.owners, lengths, strict=True):
            total[owner] += length
        return tuple(total)

    def note(self, name: str, left: Tensor, right: Tensor, lengths: tuple[int, ...]) -> None:
        """Keep what the gradient of a factor is made of."""
        self.held.setdefault(name, []).append((left.detach(), right.detach(), lengths))


@dataclass
class Wave:
    """The clients in the current pass: their parameters, their shares of the tokens, their dropout.

    One object, shared by all stacked modules of a model; `through` sets it for one pass.

    Attributes:
        parameters: ``{name: tensor[clients, *shape]}``; empty outside a pass, and then every stacked
            module is its frozen base.
        units: Rows (padded), tokens (packed) or label positions (heads) of each client.
        columns: Tokens of each unit; None where they differ from call to call, as in generation.
        draws: Where dropout masks come from; None turns dropout off.
        rows: Tokens of the pass whose last hidden state is read; None: all of them.
        in_head: Whether the head is running: what stands behind the trunk is adapted there and nowhere else.
        real: Positions of the real tokens of a padded pass; None elsewhere.
        tokens: Tokens of a padded pass, pads included.
        real_units: Real tokens of each client in a padded pass.
        examples: Where each example's gradient is wanted; an example is then a client in all of the above but
            LoRA's parameters. None elsewhere.
        plans: The pass's tokens in blocks, worked out once for all modules that are alike.
    """

    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    units: tuple[int, ...] = ()
    columns: int | None = 1
    draws: Draws | None = None
    rows: Tensor | None = None
    in_head: bool = False
    real: Tensor | None = None
    tokens: int = 0
    real_units: tuple[int, ...] = ()
    examples: Examples | None = None
    plans: dict[Any, Blocks] = field(default_factory=dict)

    def lengths(self, x: Tensor, name: str) -> tuple[int, ...]:
        """Rows of each client in ``x`` ``[..., features]``, which lies client by client.

        Args:
            x: What a module was called on.
            name: The module's, for the message.

        Raises:
            NotPerClient: the rows are not the tokens of the pass, so nobody can say whose they are. The least
                that could be said, that their number divides by that of the tokens, is true by chance.
        """
        flat, units = x.shape[:-1].numel(), sum(self.units)
        if len(self.units) == 1:
            return (flat,)
        # Not the leading axis of a packed pass, which is 1: all of its tokens are one row.
        by_rows = x.dim() > 2 and x.shape[0] == units
        tokens = flat % units == 0 if self.columns is None else flat in (units, units * self.columns)
        if not (tokens or by_rows):
            raise NotPerClient(
                f"{name} is called on {list(x.shape)}, which are not the pass's {units} x {self.columns}"
            )
        return tuple(n * (flat // units) for n in self.units)

    def in_blocks(self, lengths: tuple[int, ...], width: int | None, device: torch.device) -> Blocks | None:
        """These clients' tokens in blocks; None where a loop over the clients is to be preferred.

        Args:
            lengths: Tokens of each client.
            width: See `plan_blocks`.
            device: Where the tokens are.
        """
        if not blocks.pay(device, lengths):
            return None
        if (lengths, width) not in self.plans:
            self.plans[lengths, width] = blocks.plan_blocks(lengths, width, device)
        return self.plans[lengths, width]

    def keep(self, flat: Tensor, probability: float) -> Tensor | None:
        """Dropout factors for ``flat`` ``[tokens, features]``; None where nothing is to be dropped."""
        if self.draws is None or probability == 0.0:
            return None
        return self.draws.keep(flat, probability)

    @contextmanager
    def through(
        self, parameters: Mapping[str, Tensor], units: tuple[int, ...], **more: Any
    ) -> Iterator[None]:
        """Let the stacked modules see these clients for the length of the block.

        Args:
            parameters: See the attributes, as for all that follows.
            units: See the attributes.
            more: Other attributes; what is not given is as outside a pass.
        """
        before = vars(self).copy()
        vars(self).update(vars(Wave(parameters, units, **more, examples=self.examples)))
        try:
            yield
        finally:
            vars(self).update(before)

    @contextmanager
    def apart(self, examples: Examples) -> Iterator[None]:
        """Let the passes within the block tell each example's gradient apart."""
        self.examples = examples
        try:
            yield
        finally:
            self.examples = None

    @contextmanager
    def without_pads(self) -> Iterator[None]:
        """Let the stacked modules see the real tokens of a padded pass end to end."""
        draws = self.draws.without_pads() if self.draws else None
        more = {"in_head": self.in_head, "plans": self.plans}
        with self.through(self.parameters, self.real_units, draws=draws, **more):
            yield

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Let dropout that an architecture calls as a function be drawn for each client apart, too.

        Its own would draw from torch's global generator, and depend on everybody in the pass.
        """
        own = F.dropout

        def drop(input: Tensor, p: float | int = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            keep = self.keep(input.reshape(-1, input.shape[-1]), p) if training else None
            return input if keep is None else input * keep.view_as(input)

        F.dropout = drop
        try:
            yield
        finally:
            F.dropout = own


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` at the dotted ``name`` below ``root``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


class StackedDropout(nn.Module):
    """Takes the place of a base model's ``nn.Dropout``; draws for each client apart.

    Attributes:
        p: Probability with which a number is dropped.
        behind_trunk: Whether it belongs to the head and drops nothing in the trunk; else the reverse.
    """

    def __init__(self, p: float, wave: Wave, behind_trunk: bool = False):
        super().__init__()
        self.p, self.behind_trunk = p, behind_trunk
        self._wave = wave

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., features]`` with dropout, where the pass asks for it."""
        if self.behind_trunk != self._wave.in_head:
            return x
        flat = x.reshape(-1, x.shape[-1])
        keep = self._wave.keep(flat, self.p)
        return x if keep is None else x * keep.view_as(x)


def stack_dropout(model: nn.Module, wave: Wave, behind: frozenset[str]) -> None:
    """Put `StackedDropout` in the place of whatever drops, in place.

    Args:
        model: The base.
        wave: Of the passes through it.
        behind: Names of the modules that belong to the head.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and module.p > 0:
            replace_module(model, name, StackedDropout(module.p, wave, name in behind))


def drops(model: PreTrainedModel, adapter: PeftConfig | None) -> bool:
    """Whether anything is dropped in training, by the model or its adapter."""
    settings = model.config.get_text_config().to_dict()
    chances = [value for name, value in settings.items() if "drop" in name or "pdrop" in name]
    chances.append(getattr(adapter, "lora_dropout", 0.0))
    return any(isinstance(chance, float) and chance > 0 for chance in chances)
