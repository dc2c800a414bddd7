"""The adapter bank: all clients' trainable parameters as one stacked thing, clients first.

Federation is plain algebra over the first axis: FedAvg is a weighted mean of rows, gossip is a
matrix product, FedProx is a distance to a row, and a client's adapter is a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Row = dict[str, Tensor]
"""One adapter: ``{name: tensor[*shape]}``, named as PEFT names it in ``adapter_model.safetensors``."""


@dataclass(frozen=True)
class AdapterBank:
    """Stacked adapters: ``{name: tensor[clients, *shape]}``.

    Attributes:
        tensors: float32 (float64 in tests) tensors; all share the length of their first axis.
    """

    tensors: Row

    @classmethod
    def repeat(cls, row: Mapping[str, Tensor], clients: int) -> AdapterBank:
        """A bank in which every one of ``clients`` rows is a copy of ``row``."""
        return cls({name: t.unsqueeze(0).repeat(clients, *[1] * t.ndim) for name, t in row.items()})

    @classmethod
    def stack(cls, rows: Sequence[Mapping[str, Tensor]]) -> AdapterBank:
        """A bank of the given rows, in their order."""
        return cls({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    @property
    def clients(self) -> int:
        """Number of rows."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the adapters lie."""
        return next(iter(self.tensors.values())).device

    def row(self, client: int) -> Row:
        """Client ``client``'s adapter: views, not copies."""
        return {name: t[client] for name, t in self.tensors.items()}

    def rows(self, clients: Iterable[int]) -> AdapterBank:
        """The bank of some clients, copied, in the order given."""
        index = torch.tensor(list(clients), dtype=torch.long)
        return AdapterBank({name: t.index_select(0, index.to(t.device)) for name, t in self.tensors.items()})

    def split(self, names: Collection[str], *, first: bool = True) -> tuple[AdapterBank, AdapterBank]:
        """The bank of these parameters and that of the others, or the other way round."""
        inside = AdapterBank({name: t for name, t in self.tensors.items() if name in names})
        outside = AdapterBank({name: t for name, t in self.tensors.items() if name not in names})
        return (inside, outside) if first else (outside, inside)

    def map(self, function: Callable[..., Tensor], *others: AdapterBank) -> AdapterBank:
        """``function`` of this bank's tensors and those of ``others``, name by name."""
        return AdapterBank(
            {
                name: function(t, *(other.tensors[name] for other in others))
                for name, t in self.tensors.items()
            }
        )

    def mean(self, weights: Float[Tensor, " clients"]) -> Row:
        """Weighted mean of the rows, FedAvg's aggregation; the weights need not sum to one.

        Raises:
            ValueError: when the weights sum to zero.
        """
        total = float(weights.sum())
        if total == 0.0:
            raise ValueError("the weights of a mean sum to 0; at least one must be positive")
        share = weights / weights.sum()
        return {name: torch.tensordot(share.to(t), t, dims=1) for name, t in self.tensors.items()}

    def __rmatmul__(self, mixing: Float[Tensor, "rows clients"]) -> AdapterBank:
        """``mixing @ bank``: every new row a weighted sum of the old ones, gossip's averaging.

        Args:
            mixing: Weights, dense or sparse, of any precision and on any device.
        """
        return self.map(
            lambda t: (mixing.to(dtype=t.dtype, device=t.device) @ t.flatten(1)).view(-1, *t.shape[1:])
        )

    def norms(self) -> Float[Tensor, " clients"]:
        """Each client's Euclidean norm over all its parameters."""
        squares = [t.flatten(1).square().sum(1) for t in self.tensors.values()]
        return torch.stack(squares).sum(0).sqrt()


def bytes_of(row: Mapping[str, Tensor]) -> int:
    """Bytes of one adapter as it would cross the wire."""
    return sum(t.numel() * t.element_size() for t in row.values())


def largest_usable(dtype: torch.dtype) -> float:
    """The largest number that anybody computes with here: its square, as Adam and norms need it, is finite.

    In float32 it is 9e18. No training that goes well comes near; what is beyond is a run that diverges, or a
    client that wants to ruin the others.
    """
    return 0.5 * math.sqrt(torch.finfo(dtype).max)


def usable(row: Mapping[str, Tensor], scale: float = 1.0) -> bool:
    """Whether every number of a row is finite and, times ``scale``, no larger than `largest_usable`."""
    # One question to the device, not one for each tensor.
    within = [(t.abs() <= largest_usable(t.dtype) / scale).all() for t in row.values()]
    return not within or bool(torch.stack(within).all())


def finite(row: Mapping[str, Tensor]) -> bool:
    """Whether every number of a row, of any dtype, is finite."""
    return all(bool(t.isfinite().all()) for t in row.values())


def norm_of(row: Mapping[str, Tensor]) -> float:
    """Euclidean norm of a row over all its parameters."""
    norms = [torch.linalg.vector_norm(t) for t in row.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
