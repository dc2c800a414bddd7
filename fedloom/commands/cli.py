"""From the words of a command line to an exit status; what a user did wrong is one message on stderr."""

import errno
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

from fedloom.commands.examples import EXAMPLES, example
from fedloom.commands.table import COMMANDS, Command
from fedloom.errors import UserError, one_line, shown, without_secrets
from fedloom.options import synonyms
from fedloom.options.help import coloured
from fedloom.options.parsing import given_options, help_text
from fedloom.options.synonyms import did_you_mean
from fedloom.process import place, prepare_process, tells
from fedloom.runtimes.signals import Terminated, ended_by_sigterm

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_TERMINATED = 143  # 128 + SIGTERM

_OF_THE_MACHINE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "ask for the permission, or choose another place",
    errno.EPERM: "ask for the permission, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file lies where a folder must be; choose another place",
    errno.EISDIR: "a folder lies where a file must be; choose another place",
    errno.ELOOP: "its links lead back to themselves; choose another place",
}
"""What the machine may refuse anywhere in a run, and what to do about it. Any other OSError is a bug."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fedloom` with the words of `argv` (by default the process's own) and return the exit status.

    0: done. 1: an audit found that something does not hold. 2: a mistake of the user, told on stderr in one
    message. 130: interrupted. 143: terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(coloured(_overview()))
        return 0
    if words[0] == "--version":
        print(f"fedloom {_version()}")
        return 0
    try:
        with ended_by_sigterm():
            return _dispatch(words[0], words[1:])
    except UserError as error:
        if tells(error):
            if len(words) == 1 and words[0] in EXAMPLES:
                print(_how_to(words[0]), file=sys.stderr)
            _say(f"error: {error}", words)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # Who read the output has enough of it, as `head` has; Python would complain once more at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE or error.filename is None:
            raise
        _say(f"error: {error.filename}: {error.strerror}; {_OF_THE_MACHINE[error.errno]}", words)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        if place().leads:
            print(f"fedloom: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED


def _say(message: str, words: Sequence[str]) -> None:
    """Print a line on stderr, without the token that may stand among the words of the command line."""
    print(f"fedloom: {one_line(without_secrets(message, *_tokens(words)))}", file=sys.stderr)


def _tokens(words: Sequence[str]) -> list[str]:
    """The values that `--token` has among the words of a command line."""
    beside = [value for word, value in pairwise(words) if word == "--token"]
    return beside + [word.partition("=")[2] for word in words if word.startswith("--token=")]


def _dispatch(name: str, words: Sequence[str]) -> int:
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(
            f"unknown command {shown(name)}{did_you_mean(name, COMMANDS, others=synonyms.COMMANDS)} "
            "(`fedloom --help` lists all)"
        )
    prog = f"fedloom {name}"
    if "--help" in words or "-h" in words:
        print(
            coloured(
                help_text(command.config_class, prog=prog, description=command.summary, example=example(name))
            )
        )
        return 0
    config = read_config(command, words, prog)
    if _tokens(words) and place().leads:
        _say(
            "warning: other users of this machine can see --token in its list of processes; "
            "set HF_TOKEN instead",
            words,
        )
    prepare_process()
    return command.run(config) or 0


def read_config(command: Command, words: Sequence[str], prog: str) -> Any:
    """The options that the words after a command mean, judged.

    Raises:
        UserError: An unknown name, or a value that breaks its rule.
    """
    if command.first and words and not words[0].startswith("-"):
        words = [f"--{command.first}", *words]
    words = [command.short.get(word, word) for word in words]
    given = given_options(command.config_class, words, prog=prog)
    config = command.config_class(**given)
    command.check(config)
    command.check_named(given, config)
    return config


def _how_to(name: str) -> str:
    """What a command does and a way to try it, for somebody who has typed its name alone."""
    return (
        f"fedloom {name}: {COMMANDS[name].summary}\n\nTo try it:\n\n{example(name)}\n"
        f"`fedloom {name} --help` lists all options.\n"
    )


def _version() -> str:
    try:
        return version("fedloom")
    except PackageNotFoundError:
        return "(not installed)"


def _overview() -> str:
    width = max(shutil.get_terminal_size().columns - 1, 30)
    last = "`fedloom COMMAND --help` lists a command's options, `fedloom --version` prints the version."
    lines = [
        "usage: fedloom COMMAND [--option value ...]",
        "",
        "Federated fine-tuning of language models.",
        "",
        "Commands:",
        *(
            textwrap.fill(f"  {name:<14}{command.summary}", width, subsequent_indent=" " * 16)
            for name, command in COMMANDS.items()
        ),
        "",
        textwrap.fill(last, width),
    ]
    return "\n".join(lines)
