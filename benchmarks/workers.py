"""Long-lived processes that hold the models, so that each contender runs as its user would run it.

The parent asks one of them at a time and waits for the answer: only one ever computes. Nothing here
imports torch before the process has been set up.
"""

from __future__ import annotations

import multiprocessing
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from fedloom.errors import UserError
from fedloom.process import prepare_process


@dataclass(frozen=True)
class Settings:
    """What is measured; the same in every process."""

    model: str
    arch: str | None
    quantize: str
    device: str
    data_name: str
    data_dir: str | None
    clients: int
    batches: int
    batch_size: int
    pad: int
    dtype: str = "auto"


class Worker:
    """A process that holds one way to train (`peft` or `fedloom`), or one that measures memory (`memory`)."""

    def __init__(self, way: str, settings: Settings, *, prepared: bool):
        """Start the process.

        Args:
            way: Which of the ways.
            settings: What is measured.
            prepared: Whether the process starts as fedloom's command line does.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, way, settings, prepared), daemon=True)
        self._process.start()
        child.close()
        self._receive()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the way in its process and wait for the answer."""
        self._connection.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """End the process and give its memory back."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            status, answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a worker ended with status {self._process.exitcode}") from None
        if status == "mistake":
            raise UserError(answer)
        if status == "error":
            raise RuntimeError(f"a worker failed:\n{answer}")
        return answer


def _serve(connection: Connection, name: str, settings: Settings, prepared: bool) -> None:
    if prepared:
        prepare_process()
    try:
        way = _build(name, settings)
        connection.send(("done", None))
        while True:
            method, arguments = connection.recv()
            connection.send(("done", getattr(way, method)(*arguments)))
    except EOFError:  # the parent has closed its end
        return
    except UserError as mistake:
        connection.send(("mistake", str(mistake)))
    except Exception:
        connection.send(("error", traceback.format_exc()))


def _build(name: str, settings: Settings) -> Any:
    from contenders import Fedloom, PeftLoop
    from memory import Memory
    from stage import Stage

    return {"peft": PeftLoop, "fedloom": Fedloom, "memory": Memory}[name](Stage(settings))
