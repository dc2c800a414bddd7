"""Commands on ranks, one after another, with a look at the sockets between them.

The processes are forked of one that has loaded torch, and meet as those of torchrun do: at a store that the
process which started them keeps.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import struct
import time
from pathlib import Path
from unittest import mock

import pytest
from processes import CONTEXT, begin
from torch.distributed import TCPStore

TCP_BYTES_RECEIVED = 128  # where Linux's struct tcp_info has them


@contextlib.contextmanager
def spoiled(client):
    """One client's loss is never finite."""
    import fedloom.training.fed_rounds

    run = fedloom.training.fed_rounds.run_clients

    def spoil(*arguments, **named):
        for update in run(*arguments, **named):
            yield dataclasses.replace(update, loss=math.nan) if update.client == client else update

    with mock.patch.object(fedloom.training.fed_rounds, "run_clients", spoil):
        yield


def received_so_far():
    """Bytes that this process's TCP connections have received, as the kernel counts them."""
    total = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        if not descriptor.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
            if (
                connection.family in (socket.AF_INET, socket.AF_INET6)
                and connection.type == socket.SOCK_STREAM
            ):
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                total += struct.unpack_from("Q", info, TCP_BYTES_RECEIVED)[0]
    return total


@contextlib.contextmanager
def ranks_of(folder, todo, count=2):
    """The processes of ranks of this machine that run commands; what is left of them is killed at the end.

    Args:
        folder: Where the ranks leave what they found and said.
        todo: For each command its words, and the client whose loss is to be not finite, or None.
        count: How many ranks.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    ranks = [
        CONTEXT.Process(target=_rank, args=({**place, "RANK": n, "LOCAL_RANK": n}, folder, todo), daemon=True)
        for n in range(count)
    ]
    try:
        for rank in ranks:
            rank.start()
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()


def on_ranks(folder, todo, count=2, seconds=800):
    """Run commands on ranks of this machine, as `ranks_of` does, and wait until they are done.

    Args:
        folder: Where the ranks leave what they found and said.
        todo: As `ranks_of` has it.
        count: How many ranks.
        seconds: How long they may take altogether.

    Returns:
        For each rank what it found of each command: the exit status, and the bytes that its sockets received
        in each exchange of rows, and in each sum or copy; and what all of them said.
    """
    with ranks_of(folder, todo, count) as ranks:
        ends = time.monotonic() + seconds
        for rank in ranks:
            rank.join(max(0.1, ends - time.monotonic()))
        said = (folder / "said.txt").read_text()
        assert [rank.exitcode for rank in ranks] == [0] * count, said
    return [json.loads((folder / f"found-{n}.json").read_text()) for n in range(count)], said


def _rank(environment, folder, todo):
    os.environ.update({name: str(value) for name, value in environment.items()})
    begin(folder / "said.txt")

    from tried import try_once

    from fedloom.commands.cli import main as fedloom
    from fedloom.runtimes.distributed import Ranks

    received, moved = [], []

    def watched(move, log):
        def look(self, *what):
            self.gather(None)  # nobody sends before everybody has looked
            before = received_so_far()
            result = move(self, *what)
            log.append(received_so_far() - before)
            return result

        return look

    looks = {
        "exchange": watched(Ranks.exchange, received),
        "sum": watched(Ranks.sum, moved),
        "copy": watched(Ranks.copy, moved),
    }
    found = []
    with mock.patch.multiple(Ranks, **looks), pytest.MonkeyPatch.context() as patch:
        try_once(patch)
        for words, client in todo:
            del received[:], moved[:]
            with spoiled(client):
                status = fedloom(words)
            found.append({"status": status, "received": list(received), "moved": list(moved)})
    (folder / f"found-{environment['RANK']}.json").write_text(json.dumps(found))
