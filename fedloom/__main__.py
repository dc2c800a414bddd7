"""`fedloom`, and `python -m fedloom`."""

import sys

from fedloom.process import restart_prepared


def run() -> int:
    """`cli.main` in a process that has what must be there from its start."""
    restart_prepared()
    from fedloom.commands.cli import main  # not before: the process may begin again

    return main()


if __name__ == "__main__":
    sys.exit(run())
