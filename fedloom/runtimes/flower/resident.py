"""A process that stays while Flower's come and go.

Outside of a simulation Flower starts a process for every message. Loading torch and a model each time
would take longer than many a round, so that process hands the message to a resident one, which keeps the
model. They talk over a Unix socket in a folder that only this user can enter. The resident ends with the
SuperNode that it serves, and after a while without a message, so that it does not hold a GPU for a run that
is over.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import psutil

from fedloom.process import prepared_environment

IDLE_SECONDS = 600
_SECONDS_TO_START = 60
_DONE, _FAILED = b"done", b"failed"

Pieces = list[bytes]


def one_message_per_process() -> bool:
    """Whether Flower started this process for a single message."""
    return Path(sys.argv[0]).stem == "flwr-clientapp"


def ask_resident(module: str, pieces: Pieces, node: int) -> Pieces:
    """Let this SuperNode's resident answer; it is started where there is none.

    Args:
        module: Run with ``python -m module ADDRESS PROCESS``, it calls `serve` with both.
        pieces: The request.
        node: Which SuperNode asks.

    Raises:
        RuntimeError: The resident failed; the message is its traceback.
    """
    served = os.getppid()  # Flower's executor, which ends with its SuperNode
    address = _address(node, served)
    with _reached(module, address, served) as connection:
        _send(connection, pieces)
        try:
            outcome, *answer = _receive(connection)
        except (EOFError, ConnectionError):
            raise RuntimeError("the process that trains has died; was there too little memory?") from None
    if outcome != _DONE:
        raise RuntimeError(answer[0].decode())
    return answer


def serve(address: str, served: int, answer: Callable[[Pieces], Pieces]) -> None:
    """Answer requests, one after another, until the process that is served ends or nobody asks any more.

    Args:
        address: Where to listen.
        served: The process to end with.
        answer: Answers a request.
    """
    asked = [time.monotonic()]
    threading.Thread(target=_end_in_time, args=(address, served, asked), daemon=True).start()
    with Listener(address, family="AF_UNIX") as listener:
        while True:
            with listener.accept() as connection:
                try:
                    pieces = _receive(connection)
                    asked[0] = float("inf")
                    _send(connection, _outcome(answer, pieces))
                except (EOFError, ConnectionError):
                    pass  # who asked is gone
            asked[0] = time.monotonic()


def _outcome(answer: Callable[[Pieces], Pieces], pieces: Pieces) -> Pieces:
    try:
        return [_DONE, *answer(pieces)]
    except Exception:  # whatever it is, the one who asked must hear it
        return [_FAILED, traceback.format_exc().encode()]


def _end_in_time(address: str, served: int, asked: Sequence[float]) -> None:
    try:
        process = psutil.Process(served)
        while process.is_running() and time.monotonic() - asked[0] < IDLE_SECONDS:
            time.sleep(1)
    except psutil.NoSuchProcess:
        pass
    Path(address).unlink(missing_ok=True)
    os._exit(0)  # also in the middle of training: nobody waits for it


def _reached(module: str, address: str, served: int) -> Connection:
    try:
        return Client(address, family="AF_UNIX")
    except (FileNotFoundError, ConnectionError):
        Path(address).unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", module, address, str(served)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=prepared_environment(),
    )
    until = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            return Client(address, family="AF_UNIX")
        except (FileNotFoundError, ConnectionError):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the process that trains could not be started; see its output") from None
            time.sleep(0.05)


def _address(node: int, served: int) -> str:
    """A socket's name, short as such names must be, in a folder of this user's own."""
    folder = Path(tempfile.gettempdir()) / f"fedloom-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RuntimeError(f"{folder}: must be a folder that only this user can enter; remove it")
    name = hashlib.sha256(f"{node} {served}".encode()).hexdigest()[:16]
    return str(folder / f"{name}.sock")


def _send(connection: Connection, pieces: Pieces) -> None:
    connection.send_bytes(len(pieces).to_bytes(2, "big"))
    for piece in pieces:
        connection.send_bytes(piece)


def _receive(connection: Connection) -> Pieces:
    return [connection.recv_bytes() for _ in range(int.from_bytes(connection.recv_bytes(), "big"))]
