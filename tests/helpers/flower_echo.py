"""A resident for tests: gives back what it got, and its process."""

import os
import sys

from fedloom.runtimes.flower.resident import serve


def answer(pieces):
    if pieces[0] == b"fail":
        raise ZeroDivisionError("as asked")
    if pieces[0] == b"die":
        os._exit(1)
    return [*pieces, str(os.getpid()).encode()]


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), answer)
