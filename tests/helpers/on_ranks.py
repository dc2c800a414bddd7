"""What tests start with torchrun: commands one after another, and a look at the sockets between ranks.

    torchrun --nproc-per-node 2 tests/helpers/on_ranks.py TODO.json

TODO.json holds a list of {"words": [...], "spoiled": client or null}. Each rank leaves TODO.json.RANK with
the exit statuses, and the bytes that its sockets received in each exchange of rows.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import struct
import sys
from pathlib import Path
from unittest import mock

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


def main(todo):
    from fedloom.commands.cli import main as fedloom
    from fedloom.runtimes.distributed import Ranks

    exchange, received = Ranks.exchange, []

    def watched(self, outgoing, incoming):
        self.gather(None)  # nobody sends before everybody has looked
        before = received_so_far()
        exchange(self, outgoing, incoming)
        received.append(received_so_far() - before)

    statuses = []
    with mock.patch.object(Ranks, "exchange", watched):
        for one in json.loads(todo.read_text()):
            del received[:]
            with spoiled(one["spoiled"]):
                status = fedloom(one["words"])
            statuses.append({"status": status, "received": list(received)})
    Path(f"{todo}.{os.environ['RANK']}").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
