"""The plain text log of a run without a server."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedloom.runs.files import writing


class _LogFile(logging.FileHandler):
    """A log that a full disk ends with one line, where logging would print a traceback for every line."""

    ended = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.ended:
            self.ended = True
            reason = f"{self.baseFilename} cannot be written ({error.strerror})"
            print(f"fedloom: {reason}; the run goes on without it", file=sys.stderr)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Let fedloom's log also go to a file, appended, line by line.

    Raises:
        CannotWrite: The file cannot be opened.
    """
    with writing(path, then="choose another --log_path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fedloom")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()
