"""Talks with neighbours who may not be there, or not as they should be: each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fedloom.runs.files import CannotWrite
from fedloom.runtimes.libp2p.counts import Counts
from fedloom.runtimes.libp2p.schema import MessageRefused
from fedloom.runtimes.libp2p.wire import LOST

Talk = Callable[..., Awaitable[None]]
"""``(peer, …)``: something that is said to a neighbour."""


class Attempts:
    """Talks that are going on; all in one event loop."""

    def __init__(self, counts: Counts, fail: Callable[[CannotWrite], None]) -> None:
        """Nothing is said yet.

        Args:
            counts: Counts what is refused.
            fail: Is told why what was said or heard could not be kept.
        """
        self._counts, self._fail = counts, fail
        self._tasks: set[asyncio.Task[Any]] = set()

    async def attempt(self, talk: Talk, peer: int, *about: Any) -> bool:
        """Talk to a neighbour; returns whether it was there."""
        try:
            await talk(peer, *about)
        except MessageRefused as error:
            self._counts.refuse(peer, error)
        except CannotWrite as error:
            self._fail(error)
            return False
        except LOST:
            return False
        return True

    def spawn(self, talk: Talk, peer: int, *about: Any) -> asyncio.Task[bool]:
        """Talk to a neighbour while other things go on."""
        task = asyncio.ensure_future(self.attempt(talk, peer, *about))
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any] | None) -> None:
        """End a task too, when all end."""
        assert task is not None, "messages are answered in tasks"
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End everything that still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
