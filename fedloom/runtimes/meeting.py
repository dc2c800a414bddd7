"""How the processes that torchrun started meet, and how they part: device, signals, silence."""

from __future__ import annotations

import itertools
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from fedloom.errors import UserError
from fedloom.process import Place, RankLost
from fedloom.runtimes.distributed import Ranks, others_in_reach

LONGEST_WAIT = timedelta(minutes=30)
"""For a rank that is still there and says nothing; one that has died is noticed at once."""

_meetings = itertools.count()


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
    my_device, mistake = torch.device("cpu"), None
    try:
        my_device = _device_of(place, device)
    except UserError as error:
        mistake = error
    with _connected(place, my_device) as ranks, _obedient(ranks), _silent(place):
        ranks.together(lambda: _agree_on(my_device, mistake, ranks))
        yield ranks


@contextmanager
def _connected(place: Place, device: torch.device) -> Iterator[Ranks]:
    store = _store()
    with others_in_reach(store):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=LONGEST_WAIT,
            store=store,
            rank=place.rank,
            world_size=place.size,
        )
    lost = False
    try:
        yield Ranks(place, device, store)
    except RankLost:
        lost = True  # parting takes all ranks
        raise
    finally:
        if not lost:
            dist.destroy_process_group()


@contextmanager
def _obedient(ranks: Ranks) -> Iterator[None]:
    """Let signals end the run between two rounds."""
    handlers = {
        signal.SIGINT: ranks.ask_to_stop,
        signal.SIGTERM: ranks.ask_to_stop,
        signal.SIGALRM: ranks.out_of_time,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except RankLost:
        # torchrun's signal to end must not come between this and the message.
        before.clear()
        raise
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent(place: Place) -> Iterator[None]:
    """Keep warnings of other ranks than the first to themselves."""
    if place.leads:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def _store() -> dist.Store:
    """Where processes find each other: torchrun's own process keeps it, so that it outlives any rank.

    Each meeting has a part of its own: a process may make several runs, and gloo must not find old addresses.
    """
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=LONGEST_WAIT)))
    except RuntimeError as error:
        raise RankLost(f"the ranks cannot meet ({error})", tells=True) from error
    return dist.PrefixStore(f"fedloom/{next(_meetings)}", store)


def _agree_on(device: torch.device, mistake: UserError | None, ranks: Ranks) -> None:
    kinds = sorted(set(ranks.gather(device.type)))
    if mistake is not None:
        raise mistake
    if len(kinds) > 1:
        raise UserError(
            f"device: the ranks compute on {' and '.join(kinds)}; give --device cpu or --device cuda"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _device_of(place: Place, device: str) -> torch.device:
    """This rank's device.

    Raises:
        UserError: There is none for it.
    """
    if ":" in device:
        raise UserError(
            f"device: {device} is one device, and there are {place.size} ranks; "
            "give --device cuda, and each takes the GPU of its local rank"
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not found):
        return torch.device("cpu")
    if place.local_size > found:
        raise UserError(
            f"device: {place.local_size} ranks on a machine with {found} CUDA device{'s' * (found != 1)}; "
            f"each needs one of its own. Lower --nproc-per-node to {max(found, 1)}, or give --device cpu"
        )
    return torch.device("cuda", place.local_rank)
