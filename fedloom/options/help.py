"""Help in the shell. `--help` is as wide as the terminal, in colour where there is one."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Literal

from fedloom.options.declare import option

_NARROW = 72
"""Columns below which meanings stand under their flags, and not beside them."""

_COLOURS = (
    # A heading at the left edge; flags where they are declared, and what their value is.
    (re.compile(r"^(?!usage)\S.*:$", re.MULTILINE), "\x1b[1m\\g<0>\x1b[0m"),
    (re.compile(r"(?<=^  )-.*?(?=  |$)", re.MULTILINE), "\x1b[36m\\g<0>\x1b[0m"),
)


class HelpFormatter(argparse.HelpFormatter):
    """Names in one column, meanings in the other; a flag's value once behind all its names."""

    def __init__(self, prog: str) -> None:
        width = max(shutil.get_terminal_size().columns - 1, 30)
        super().__init__(prog, max_help_position=8 if width < _NARROW else 28, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        takes = self._format_args(action, action.metavar) if action.nargs != 0 else ""  # type: ignore[arg-type]
        return f"{', '.join(action.option_strings)} {takes}".rstrip()

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def coloured(text: str) -> str:
    """A help text as stdout shows it: in colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    for pattern, style in _COLOURS:
        text = pattern.sub(style, text)
    return text


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """Completion."""

    shell: Literal["bash", "zsh", "fish"] = option(
        "bash",
        "shell that is to complete commands, flags and values; may stand first, without --shell: "
        'eval "$(fedloom completion bash)"',
    )
