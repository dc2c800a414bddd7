"""Stacked heads: linear layers that each client trains whole (PEFT's ``modules_to_save``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedloom.model.adapters.lora import bounds_of
from fedloom.model.wave import Wave


class StackedLinear(nn.Module):
    """A linear layer of which every client of the wave has its own.

    Attributes:
        base: The layer as it was, for use outside a wave.
        name: The layer's name as PEFT saves it, without ``.weight``.
    """

    def __init__(self, base: nn.Linear, name: str, wave: Wave):
        super().__init__()
        self.base, self.name = base, name
        self._wave = wave

    def forward(self, x: Tensor) -> Tensor:
        """Each client's own ``x Wᵀ + b``; ``x`` is ``[labels, ..., d_in]``, client by client.

        While the trunk runs it is its frozen base: a pooler that stands in the trunk is called there too, on
        what nobody reads.

        Raises:
            NotPerClient: ``x`` cannot be shared out among the clients of the pass.
        """
        weight = self._wave.parameters.get(f"{self.name}.weight")
        if weight is None or not self._wave.in_head:
            return self.base(x)
        bias = self._wave.parameters.get(f"{self.name}.bias")
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        lengths = self._wave.lengths(x, self.name)
        # Of a whole matrix no client is to have two copies.
        if (blocks := self._wave.in_blocks(lengths, None, x.device)) is not None:
            y = torch.bmm(blocks.gather(flat), blocks.spread(weight).transpose(1, 2))
            if bias is not None:
                y = y + blocks.spread(bias)[:, None]
            return blocks.scatter(y).view(*x.shape[:-1], -1)
        pieces = [
            nn.functional.linear(flat[start:end], weight[k], None if bias is None else bias[k])
            for k, (start, end) in enumerate(bounds_of(lengths))
        ]
        return torch.cat(pieces).view(*x.shape[:-1], -1)
