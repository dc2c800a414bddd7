"""The processes that torchrun started, over torch.distributed: gloo on CPUs, nccl between GPUs.

Adapters move as tensors, everything else as JSON: nothing is unpickled. Plain data always go over gloo, so
that a rank that has died is noticed there, at once, before a GPU waits for it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fedloom.errors import UserError
from fedloom.model.bank import Row
from fedloom.process import Place, RankLost

T = TypeVar("T")

GRACE_SECONDS = 20
"""After a signal a round may still end; torchrun kills what is left after 30 seconds."""


class Ranks:
    """See `runtimes.group.Group`."""

    def __init__(self, place: Place, device: torch.device, store: dist.Store):
        """Describe this process; the processes must have met already, over this store."""
        self._store = store
        self.rank, self.size, self.sharing = place.rank, place.size, place.local_size
        self.device: torch.device | None = device
        self.sent = 0
        self.asked_to_stop = False

    def share(self, value: T) -> T:
        """What rank 0 gives."""
        with others_in_reach(self._store):
            content = _bytes_of(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0)
            content = content if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
        return json.loads(content.numpy().tobytes())

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in their order."""
        mine = _bytes_of(value)
        with others_in_reach(self._store):
            lengths = [torch.empty(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]))
            longest = int(max(lengths))
            padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
            contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(contents, padded)
        pieces = (c[: int(n)].numpy().tobytes() for c, n in zip(contents, lengths, strict=True))
        return [json.loads(piece) for piece in pieces]

    def sum(self, row: Row) -> Row:
        """The sums over all ranks; one message for all tensors of a dtype."""
        return self._moved(row, dist.all_reduce, lambda size: 2 * size * (self.size - 1) // self.size)

    def copy(self, row: Row) -> Row:
        """Rank 0's tensors; one message for all tensors of a dtype."""
        return self._moved(
            row,
            lambda flat: dist.broadcast(flat, 0),
            lambda size: size * (self.size - 1) if self.rank == 0 else 0,
        )

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send a tensor to each rank of ``outgoing``, fill those of ``incoming``."""
        sends = [dist.P2POp(dist.isend, t.contiguous(), rank) for rank, t in sorted(outgoing.items())]
        receives = [dist.P2POp(dist.irecv, t, rank) for rank, t in sorted(incoming.items())]
        if not sends and not receives:
            return
        with others_in_reach(self._store):
            for request in dist.batch_isend_irecv([*sends, *receives]):
                request.wait()
        self.sent += sum(t.numel() * t.element_size() for t in outgoing.values())

    def collect(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """On rank 0 all rows; else None. Of what a checkpoint holds, so it does not count as traffic."""
        with others_in_reach(self._store):
            if self.rank != 0:
                dist.send(rows.contiguous(), 0)
                return None
            parts = [rows]
            for rank in range(1, self.size):
                part = rows.new_empty(counts[rank], *rows.shape[1:])
                dist.recv(part, rank)
                parts.append(part)
        return torch.cat(parts)

    def together(self, work: Callable[[], T]) -> T:
        """Do something that can fail: a user's mistake on one rank is raised on all."""
        result, mistake = None, None
        try:
            result = work()
        except RankLost:  # no mistake, and who is lost hears of none
            raise
        except UserError as error:
            mistake = str(error)
        _raise_any(self.gather(mistake))
        return result  # type: ignore[return-value]

    def between_rounds(self) -> None:
        """Raise KeyboardInterrupt on all ranks if one was asked to stop."""
        if any(self.gather(self.asked_to_stop)):
            raise KeyboardInterrupt

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """What a signal does: the round still ends, if it ends soon."""
        self.asked_to_stop = True
        signal.alarm(GRACE_SECONDS)

    def out_of_time(self, number: int, frame: FrameType | None) -> None:
        """What happens when the round has not ended soon."""
        raise RankLost(
            "the run was told to stop, and the round did not end in time", _is_first_to_tell(self._store)
        )

    def _moved(self, row: Row, move: Callable[[Tensor], Any], bytes_sent: Callable[[int], int]) -> Row:
        result = dict(row)
        for dtype in sorted({t.dtype for t in row.values()}, key=str):
            tensors = {name: t for name, t in sorted(row.items()) if t.dtype == dtype}
            flat = torch.cat([t.flatten() for t in tensors.values()])
            with others_in_reach(self._store):
                move(flat)
            self.sent += bytes_sent(flat.numel() * flat.element_size())
            pieces = flat.split([t.numel() for t in tensors.values()])
            result |= {
                name: piece.view_as(t) for (name, t), piece in zip(tensors.items(), pieces, strict=True)
            }
        return result


def _raise_any(mistakes: list[str | None]) -> None:
    """Raise the first mistake that a rank has made, and say which rank where it is not the first.

    Raises:
        UserError: There is one.
    """
    for rank, mistake in enumerate(mistakes):
        if mistake is not None:
            raise UserError(mistake if rank == 0 else f"{mistake} (on rank {rank})")


def _bytes_of(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


@contextmanager
def others_in_reach(store: dist.Store) -> Iterator[None]:
    """Within, what torch.distributed raises is that another rank is lost.

    Raises:
        RankLost: It is so.
    """
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise; the reason is in their words only
        raise RankLost("another rank has died or cannot be reached", _is_first_to_tell(store)) from error


def _is_first_to_tell(store: dist.Store) -> bool:
    """Whether no other rank has said yet that one was lost; where that cannot be asked, it is said again."""
    try:
        return store.add("lost", 1) == 1
    except RuntimeError:
        return True
