"""What one pass of a model is, as tensors; `fedloom.model.packing` lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """The preferences of a pass, each two sequences of it; in the order in which they lie.

    Attributes:
        labels: For each label of the pass, which preference it belongs to.
        signs: For each label, 1 in a preferred answer and -1 in a rejected one.
        clients: Whose preference it is.
        weights: Of each preference in its client's loss.
        references: The frozen base's log-ratio of each; see `Tokens.reference`.
    """

    labels: Int[Tensor, " labels"]
    signs: Int[Tensor, " labels"]
    clients: Int[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]
    references: Float[Tensor, " pairs"]

    def to(self, device: torch.device) -> Pairs:
        """The same with its tensors on ``device``."""
        return Pairs(**{name: t.to(device, non_blocking=True) for name, t in vars(self).items()})


@dataclass(frozen=True)
class Pack:
    """One pass, as tensors. ``positions`` below index the flattened ``[rows * columns]`` tokens.

    Attributes:
        ids: Token ids (any id at virtual tokens and pads).
        position_ids: Restart with each sequence.
        types: 1 in the second text of a pair, else 0 (BERT's ``token_type_ids``); None where all are 0.
        mask: True at real tokens (padded); None when packed.
        starts: Where each sequence starts (packed), after what it shares.
        lengths: Tokens of each sequence, without what it shares.
        prefix_starts: Where each sequence's shared tokens start.
        shared: Shared tokens per sequence.
        units: Tokens (packed) or rows (padded) per client.
        client_tokens: Real tokens per client.
        virtual: Positions of virtual tokens, and which of the clients' stacked prompts stands there.
        sources: Positions whose hidden state predicts a label.
        targets: The labels: token ids, or classes.
        weights: Of each label in its client's loss.
        label_clients: Whose label it is.
        label_units: Labels per client.
        run_keys, run_tokens, run_labels: The runs that draw dropout apart: a prefix or a batch.
        real: Positions of real tokens (padded), else None.
        pairs: Which sequences are preferred to which; None where each is learned by itself.
    """

    ids: Int[Tensor, "rows columns"]
    position_ids: Int[Tensor, "rows columns"]
    types: Int[Tensor, "rows columns"] | None
    mask: Bool[Tensor, "rows columns"] | None
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    prefix_starts: tuple[int, ...]
    shared: int
    units: tuple[int, ...]
    client_tokens: tuple[int, ...]
    virtual: tuple[Int[Tensor, " virtual"], Int[Tensor, " virtual"]] | None
    sources: Int[Tensor, " labels"]
    targets: Int[Tensor, " labels"]
    weights: Float[Tensor, " labels"]
    label_clients: Int[Tensor, " labels"]
    label_units: tuple[int, ...]
    run_keys: tuple[tuple[int, ...], ...]
    run_tokens: tuple[int, ...]
    run_labels: tuple[int, ...]
    real: Int[Tensor, " real"] | None
    pairs: Pairs | None = None

    @property
    def packed(self) -> bool:
        """Whether the sequences lie end to end."""
        return self.mask is None

    @property
    def columns(self) -> int:
        """Tokens per unit."""
        return 1 if self.packed else self.ids.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, with what it shares."""
        return self.shared + max(self.lengths)

    def by_sequence(self) -> tuple[Int[Tensor, "sequences longest"], Bool[Tensor, "sequences longest"]]:
        """Where each sequence's tokens stand in a packed pass, what it shares first; which are no pads."""
        device = self.ids.device
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        column = torch.arange(self.longest, device=device)
        before = torch.tensor(self.prefix_starts, device=device)[:, None] + column
        own = torch.tensor(self.starts, device=device)[:, None] + column - self.shared
        real = column < self.shared + lengths
        return torch.where(column < self.shared, before, own) * real, real

    def to(self, device: torch.device) -> Pack:
        """The same pack with its tensors on ``device``."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        if self.virtual is not None:
            moved["virtual"] = (self.virtual[0].to(device), self.virtual[1].to(device))
        if self.pairs is not None:
            moved["pairs"] = self.pairs.to(device)
        return Pack(**{**vars(self), **moved})


@dataclass(frozen=True)
class Apart:
    """Batches that run one after another, each by itself.

    Attributes:
        packs: Whose batch each is, and the batch; client by client.
        client_tokens: Real tokens per client.
    """

    packs: tuple[tuple[int, Pack], ...]
    client_tokens: tuple[int, ...]
