"""Each client's tokens in blocks of one length, so that all clients' own weights are one batched product.

A GPU waits for each operation to be started, so a loop over clients costs more the more clients there are.
Here their tokens are gathered into ``[blocks, length, features]``, and a batched product does for all blocks
what the loop does for one client:

    tokens of clients   a a a a a b b c c c c c c      lengths 5, 2, 6
    blocks of three     [a a a] [a a .] [b b .] [c c c] [c c c]

No block has tokens of two clients: with a product over both, one client's infinite numbers would be its
neighbours' too. torch's grouped product would need no pads, but knows bfloat16 alone, on some GPUs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FEWEST = 3  # clients: about 20 operations of a projection, forward and backward, where a loop has 8 of each
_STEP = 8  # block lengths are multiples of it: products of numbers of 16 bits want 16 bytes
_TRIED = 64  # block lengths


@dataclass(frozen=True)
class Blocks:
    """How tokens travel into blocks and back; all tensors lie where the tokens do.

    Attributes:
        length: Tokens of a block, pads included.
        owners: The client of each block; None: each client has one.
        firsts: Each client's first block.
        slots: The token at each slot, of the block's own client at pads too; None: there are no pads.
        home: The slot of each token; None: there are no pads.
        pads: Which slots are pads; None: there are none.
    """

    length: int
    owners: Int[Tensor, " blocks"] | None
    firsts: Int[Tensor, " clients"]
    slots: Int[Tensor, " slots"] | None
    home: Int[Tensor, " tokens"] | None
    pads: Bool[Tensor, "blocks length 1"] | None

    def gather(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "blocks length features"]:
        """Tokens in blocks; pads hold another token of the same client."""
        rows = x if self.slots is None else x.index_select(0, self.slots)
        return rows.view(-1, self.length, x.shape[-1])

    def scatter(self, x: Float[Tensor, "blocks length features"]) -> Float[Tensor, "tokens features"]:
        """The reverse of `gather`."""
        rows = x.flatten(0, 1)
        return rows if self.home is None else rows.index_select(0, self.home)

    def without_pads(self, x: Float[Tensor, "blocks length features"]) -> Tensor:
        """Zeros at the pads, in place: a sum over a block's slots is then one over its tokens."""
        # Not a product with 0, which would leave what is not finite.
        return x if self.pads is None else x.masked_fill_(self.pads, 0.0)

    def spread(self, weights: Float[Tensor, clients * shape]) -> Float[Tensor, blocks * shape]:
        """For each block its client's weights."""
        return weights if self.owners is None else weights.index_select(0, self.owners)

    def sums(self, x: Float[Tensor, blocks * shape]) -> Float[Tensor, clients * shape]:
        """The sum over each client's blocks; 0 for a client without any."""
        if self.owners is None:
            return x
        return segment_sums(x.flatten(1), self.firsts).view(-1, *x.shape[1:])


def segment_sums(x: Float[Tensor, "rows features"], firsts: Int[Tensor, " segments"]) -> Tensor:
    """Sums over stretches of rows, ``[segments, features]``, without atomic additions: the same every time.

    Args:
        x: The rows; of 16 bits they are added up in 32.
        firsts: Where each stretch begins, in ascending order; equal numbers: there is nothing in it.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    return F.embedding_bag(rows, x, firsts, mode="sum")


def pay(device: torch.device, lengths: Sequence[int]) -> bool:
    """Whether blocks are to take the place of a loop over clients.

    On a CPU starting an operation costs next to nothing, and the gathering more than it saves.
    """
    return device.type == "cuda" and sum(n > 0 for n in lengths) >= _FEWEST


def plan_blocks(lengths: Sequence[int], width: int | None, device: torch.device) -> Blocks:
    """Cut each client's tokens into blocks.

    Args:
        lengths: Tokens of each client, as they lie end to end.
        width: Numbers that a client's weights have for each of a token's features, such as LoRA's rank: a
            block costs as much as its tokens and these. None: no client's tokens are to be cut.
        device: Where the tokens are.
    """
    own = np.asarray(lengths)
    length = _block_length(own, width)
    counts = _whole(own, length)  # blocks of each client
    owners = np.repeat(np.arange(len(own)), counts)
    firsts = counts.cumsum() - counts
    starts = own.cumsum() - own
    place = (np.arange(len(owners)) - firsts[owners])[:, None] * length + np.arange(length)
    real = place < own[owners, None]
    slots = starts[owners, None] + np.minimum(place, own[owners, None] - 1)

    def there(numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)

    one_each, full = bool((counts == 1).all()), bool(real.all())
    return Blocks(
        length=length,
        owners=None if one_each else there(owners),
        firsts=there(firsts),
        slots=None if full else there(slots.ravel()),
        home=None if full else there(real.ravel().nonzero()[0]),
        pads=None if full else there(~real[..., None]),
    )


def _block_length(lengths: np.ndarray, width: int | None) -> int:
    """The length at which pads and copies of weights together cost least."""
    longest = max(int(lengths.max()), 1)
    if bool((lengths == longest).all()):
        return longest
    cuts = np.geomspace(1, 1 if width is None else _whole(longest, _STEP), _TRIED).astype(int)
    tried = np.unique(_whole(_whole(longest, cuts), _STEP)) * _STEP
    blocks = _whole(lengths, tried[:, None]).sum(1)
    return int(tried[(blocks * (tried + (width or 0))).argmin()])


def _whole(numbers: Any, by: Any) -> Any:
    """How many times ``by`` it takes to hold each."""
    return -(numbers // -by)
