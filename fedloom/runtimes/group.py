"""The processes of a run as each of them sees the others; a process that is alone is a group of one.

Everything else is written for a group, so that a run with one process and one with many are the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from fedloom.model.bank import Row

T = TypeVar("T")


@runtime_checkable
class Group(Protocol):
    """The processes ("ranks") of a run. Every rank calls every method, in the same order.

    Attributes:
        rank, size: Which of how many this one is. Rank 0 leads: it alone writes.
        sharing: Ranks on this machine, which share its memory.
        device: Where this rank computes; None leaves it to the option.
        sent: Bytes of adapters that this rank has sent to others so far.
    """

    rank: int
    size: int
    sharing: int
    device: torch.device | None
    sent: int

    def share(self, value: T) -> T:
        """What rank 0 gives: plain data, as JSON keeps it."""

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in their order: plain data, as JSON keeps it."""

    def sum(self, row: Row) -> Row:
        """The sums over all ranks of tensors of the same names and shapes."""

    def copy(self, row: Row) -> Row:
        """Rank 0's tensors in place of one's own of the same names and shapes."""

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send a tensor to each rank of ``outgoing``, and fill those of ``incoming`` with what ranks send."""

    def collect(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """On rank 0 all ranks' rows in the order of ranks, of which rank k has ``counts[k]``; else None."""

    def together(self, work: Callable[[], T]) -> T:
        """Do something that can fail: a user's mistake on one rank is raised on all."""

    def between_rounds(self) -> None:
        """Raise KeyboardInterrupt on all ranks if one was asked to stop."""


class Alone:
    """A group of one: nothing is moved."""

    rank, size, sharing, sent = 0, 1, 1, 0
    device: torch.device | None = None

    def share(self, value: T) -> T:
        """The value."""
        return value

    def gather(self, value: T) -> list[T]:
        """The value, once."""
        return [value]

    def sum(self, row: Row) -> Row:
        """The tensors."""
        return row

    def copy(self, row: Row) -> Row:
        """The tensors."""
        return row

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """There is nobody to exchange with."""

    def collect(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """The rows."""
        return rows

    def together(self, work: Callable[[], T]) -> T:
        """What the work returns."""
        return work()

    def between_rounds(self) -> None:
        """Python raises KeyboardInterrupt by itself."""


ALONE = Alone()


def moved_since(group: Group, before: int) -> dict[str, Any]:
    """The metric of the bytes of adapters that all ranks have sent since ``before``; none for a group of one.

    Args:
        group: The run's processes.
        before: `Group.sent` of this rank at the time.
    """
    if group.size == 1:
        return {}
    return {"bytes_between_ranks": sum(group.gather(group.sent - before))}
