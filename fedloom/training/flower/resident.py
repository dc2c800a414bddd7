"""The process that has the model of a SuperNode: `python -m fedloom.training.flower.resident ADDRESS PROCESS`."""

import sys

from fedloom.process import prepare_process
from fedloom.runtimes.flower.request import Request
from fedloom.runtimes.flower.resident import serve


def answer(pieces: list[bytes]) -> list[bytes]:
    """Answer a request; torch is loaded for the first one, when somebody already waits for it."""
    from fedloom.training.flower.work import answer as work

    return work(Request.of(pieces)).pieces()


if __name__ == "__main__":
    prepare_process()
    serve(sys.argv[1], int(sys.argv[2]), answer)
