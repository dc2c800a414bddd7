"""A network thread whose clock jumps: where everybody waits, the time until the next timer is over at once.

A timeout costs nothing, and none is over too soon because the machine is busy: while a thread that uses the
network computes, time goes on as it does.
"""

import asyncio
import time
from unittest import mock

from fedloom.runtimes.libp2p.network_thread import NetworkThread


class JumpingThread(NetworkThread):
    """`time.monotonic` is that of this thread until it is closed; all ends of all streams are within it."""

    def __init__(self):
        super().__init__()
        self._busy = 1  # threads that may still ask something; changed within the loop only
        self._jumped, real = 0.0, time.monotonic
        self._clock = mock.patch.object(time, "monotonic", lambda: real() + self._jumped)
        self._clock.start()
        self._loop.call_soon_threadsafe(self._take_over)

    def run(self, work):
        """As ever; a thread that waits for the network is not busy."""

        async def counted():
            self._busy -= 1
            try:
                return await work
            finally:
                self._busy += 1

        return super().run(counted())

    def more(self, threads):
        """So many more threads, or fewer, use the network from now on."""

        async def change():
            self._busy += threads

        asyncio.run_coroutine_threadsafe(change(), self._loop)

    def close(self):
        """End the thread; the clock is the real one again."""
        super().close()
        self._clock.stop()

    def _take_over(self):
        selector, select = self._loop._selector, self._loop._selector.select

        def jump(timeout=None):
            if timeout and not self._busy and not (ready := select(0)):
                self._jumped += timeout
                return ready
            return select(timeout)

        selector.select = jump
