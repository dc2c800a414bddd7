"""`fedloom completion`: by what it prints, a shell completes commands, flags, values, files and folders."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

from fedloom.commands.table import COMMANDS
from fedloom.options.declare import Option, options
from fedloom.options.methods import METHODS, PARTS
from fedloom.options.parsing import build_parser
from fedloom.options.parts import choices


def run_completion(shell: str) -> None:
    """Print the script for a shell: bash, zsh or fish."""
    print(shtab.complete(_whole_parser(), shell))


def _whole_parser() -> argparse.ArgumentParser:
    """All commands in one parser, as shtab wants them; it takes nothing apart."""
    whole = argparse.ArgumentParser("fedloom", description="Federated fine-tuning of language models.")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        by_name = {entry.name: entry for entry in options(command.config_class)}
        flags = build_parser(by_name)
        for action in flags._actions:
            _let_complete(action, by_name[action.dest])
        one = commands.add_parser(name, help=command.summary, parents=[flags], add_help=True)
        if command.first:
            first: Any = one.add_argument(command.first, nargs="*")
            _let_complete(first, by_name[command.first])
    return whole


def _let_complete(action: Any, entry: Option) -> None:
    values = {"method": [row.name for row in METHODS]} | {part.option: choices(part) for part in PARTS}
    words = [*entry.choices, *values.get(entry.name, [])]
    if action.metavar == "true|false":
        words = ["true", "false"]
    if words:
        action.choices = words
    elif entry.path:
        action.complete = shtab.FILE
