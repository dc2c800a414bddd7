"""The processes that torchrun started, over torch.distributed: gloo on CPUs, nccl between GPUs.

Adapters move as tensors, everything else as JSON: nothing is unpickled. Plain data always go over gloo, so
that a rank that has died is noticed there, at once, before a GPU waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fedloom.config import UserError
from fedloom.model.bank import Row
from fedloom.torchrun import Place, RankLost

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=30)
"""For a rank that is still there and says nothing; one that has died is noticed at once."""
GRACE_SECONDS = 20
"""After a signal a round may still end; torchrun kills what is left after 30 seconds."""


class Ranks:
    """See `runtimes.group.Group`."""

    def __init__(self, place: Place, device: torch.device):
        """Describe this process; the processes must have met already."""
        self.rank, self.size, self.sharing = place.rank, place.size, place.local_size
        self.device: torch.device | None = device
        self.sent = 0
        self.asked_to_stop = False

    def share(self, value: T) -> T:
        """What rank 0 gives."""
        with _others_in_reach():
            content = _bytes_of(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
            length = torch.tensor([len(content)])
            dist.broadcast(length, 0)
            content = content if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
        return json.loads(content.numpy().tobytes())

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in their order."""
        own = _bytes_of(value)
        with _others_in_reach():
            lengths = [torch.empty(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(own)]))
            longest = int(max(lengths))
            padded = torch.cat([own, own.new_zeros(longest - len(own))])
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
        with _others_in_reach():
            for request in dist.batch_isend_irecv([*sends, *receives]):
                request.wait()
        self.sent += sum(t.numel() * t.element_size() for t in outgoing.values())

    def collect(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """On rank 0 all rows; else None. Of what a checkpoint holds, so it does not count as traffic."""
        with _others_in_reach():
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
        except UserError as error:
            mistake = str(error)
        raise_any(self.gather(mistake))
        return result  # type: ignore[return-value]

    def between_rounds(self) -> None:
        """Raise KeyboardInterrupt on all ranks if one was asked to stop."""
        if any(self.gather(self.asked_to_stop)):
            raise KeyboardInterrupt

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """What a signal does: the round still ends, if it ends soon."""
        self.asked_to_stop = True
        signal.alarm(GRACE_SECONDS)

    def _moved(self, row: Row, move: Callable[[Tensor], Any], bytes_sent: Callable[[int], int]) -> Row:
        result = dict(row)
        for dtype in sorted({t.dtype for t in row.values()}, key=str):
            own = {name: t for name, t in sorted(row.items()) if t.dtype == dtype}
            flat = torch.cat([t.flatten() for t in own.values()])
            with _others_in_reach():
                move(flat)
            self.sent += bytes_sent(flat.numel() * flat.element_size())
            pieces = flat.split([t.numel() for t in own.values()])
            result |= {name: piece.view_as(t) for (name, t), piece in zip(own.items(), pieces, strict=True)}
        return result


@contextmanager
def joined(place: Place, device: str) -> Iterator[Ranks]:
    """Meet the other processes; part from them at the end.

    All but rank 0 are silent within.

    Args:
        place: This process's.
        device: As the option has it: `auto`, `cpu` or `cuda`; each rank takes the GPU of its local rank.

    Raises:
        UserError: The device will not do, on this rank or on another.
        RankLost: Another process could not be reached.
    """
    own = _device_of(place, device)
    cuda = own is not None and own.type == "cuda"
    with _others_in_reach():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    ranks = Ranks(place, own or torch.device("cpu"))
    mistake = None if own is not None else _too_few(place)
    raise_any(ranks.gather(mistake))
    kinds = ranks.gather(str(own and own.type))
    if len(set(kinds)) > 1:
        raise UserError(
            f"device: the ranks compute on {' and '.join(sorted(set(kinds)))}; "
            "give --device cpu or --device cuda"
        )
    if cuda:
        torch.cuda.set_device(own)
    before = {number: signal.signal(number, ranks.ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _out_of_time)
    disabled = logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            if not place.leads:
                logging.disable(logging.WARNING)
                warnings.simplefilter("ignore")
            yield ranks
        dist.destroy_process_group()
    finally:
        signal.alarm(0)
        logging.disable(disabled)
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_any(mistakes: list[str | None]) -> None:
    """Raise the first mistake that a rank has made, and say which rank where it is not the first.

    Raises:
        UserError: There is one.
    """
    for rank, mistake in enumerate(mistakes):
        if mistake is not None:
            raise UserError(mistake if rank == 0 else f"{mistake} (on rank {rank})")


def _device_of(place: Place, device: str) -> torch.device | None:
    """This rank's device; None where this machine has too few GPUs."""
    if ":" in device:
        raise UserError(
            f"device: {device} is one device, and there are {place.size} ranks; "
            "give --device cuda, and each takes the GPU of its local rank"
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not found):
        return torch.device("cpu")
    return torch.device("cuda", place.local_rank) if place.local_size <= found else None


def _too_few(place: Place) -> str:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (
        f"device: {place.local_size} ranks on a machine with {found} CUDA device{'s' * (found != 1)}; "
        f"each needs one of its own. Lower --nproc-per-node to {max(found, 1)}, or give --device cpu"
    )


def _bytes_of(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise RankLost("the run was told to stop, and the round did not end in time", _is_first_to_tell())


@contextmanager
def _others_in_reach() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise; the reason is in their words only
        raise RankLost("another rank has died or cannot be reached", _is_first_to_tell()) from error


def _is_first_to_tell() -> bool:
    """Whether no other rank has said yet that one was lost; who can ask nobody says it."""
    try:
        # torchrun's own process keeps this store, so that it outlives any rank.
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"fedloom/lost/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, ValueError):
        return True
