"""The commands that a user types.

A command is a dataclass of options, a check and a function that does the work; the work is imported only when
it is asked for, so that `--help` and a mistyped flag answer without loading torch.
"""

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedloom.errors import UserError, one_line, shown, without_secrets
from fedloom.options.check_evaluation import check as check_eval
from fedloom.options.check_fed import check, check_rules, check_values
from fedloom.options.check_flower import check as check_flower
from fedloom.options.check_graph import check as check_dfl
from fedloom.options.check_peer import check as check_peer
from fedloom.options.declare import did_you_mean
from fedloom.options.evaluation import EvalConfig
from fedloom.options.fed import DemoConfig, FedConfig
from fedloom.options.flower import FlowerConfig
from fedloom.options.graph import DflConfig, SplitConfig, TopologyConfig, ViewConfig
from fedloom.options.method import MethodsConfig
from fedloom.options.parsing import help_text, parse
from fedloom.options.peer import AuditConfig, IdentityConfig, PeerConfig
from fedloom.options.report import ReportConfig
from fedloom.process import place, prepare_process, tells
from fedloom.runtimes.signals import Terminated, ended_by_sigterm

EXIT_DOES_NOT_HOLD = 1
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


@dataclass(frozen=True)
class Command:
    """One command: what it does in a line, its options, how they are judged, and what runs.

    `run` returns the exit status; None is 0.
    `first` is the option that a first word without dashes gives, where there is one; an option of several
    words takes all that follow. `short` are the flags of one letter, with the options that they stand for.
    """

    summary: str
    config_class: type[Any]
    check: Callable[[Any], None]
    run: Callable[[Any], int | None]
    first: str | None = None
    short: Mapping[str, str] = field(default_factory=dict)


def _fed(config: FedConfig) -> None:
    from fedloom.commands.fed import run_fed

    run = run_fed(config)
    if place().leads:
        print(f"Adapter: {run.checkpoint}")


def _dfl(config: DflConfig) -> None:
    from fedloom.commands.dfl import run_dfl

    run = run_dfl(config)
    if place().leads:
        print(f"Adapters, one per peer: {run.checkpoint}")


def _flower(config: FlowerConfig) -> None:
    from fedloom.commands.flower import start_command, write_app

    folder = write_app(config)
    print(f"App: {folder}. Start it with: {start_command(config)}")


def _peer(config: PeerConfig) -> None:
    from fedloom.training.peer import run_peer

    run = run_peer(config)
    print(f"Adapter: {run.checkpoint}")


def _identity(config: IdentityConfig) -> None:
    from fedloom.runtimes.libp2p.identity import make_identity

    print(make_identity(Path(config.key)))


def _audit(config: AuditConfig) -> int:
    from fedloom.commands.audit import run_audit

    return 0 if run_audit(config.runs) else EXIT_DOES_NOT_HOLD


def _split(config: SplitConfig) -> None:
    from fedloom.commands.split import run_split

    run_split(**asdict(config))


def _view(config: ViewConfig) -> None:
    from fedloom.commands.view import run_view

    run_view(**asdict(config))


def _topology(config: TopologyConfig) -> None:
    from fedloom.commands.topology import run_topology

    run_topology(**asdict(config))


def _eval(config: EvalConfig) -> None:
    from fedloom.commands.eval import run_eval

    run_eval(config)


def _report(config: ReportConfig) -> None:
    from fedloom.commands.report import run_report

    run_report(**asdict(config))


def _methods(config: MethodsConfig) -> None:
    from fedloom.commands.methods import run_methods

    run_methods(as_json=config.json, plugin=config.plugin)


def _demo(config: DemoConfig) -> None:
    # Before the libraries, which take seconds.
    print(
        "fedloom demo: four clients teach a small model arithmetic. Loading libraries and model …", flush=True
    )
    from fedloom.commands.demo import run_demo

    run_demo(**asdict(config))


COMMANDS: dict[str, Command] = {
    "fed": Command("Fine-tune one model across many clients, with a server.", FedConfig, check, _fed),
    "dfl": Command("Fine-tune across peers on a graph, without a server.", DflConfig, check_dfl, _dfl),
    "flower": Command(
        "Write an app that runs a federation over Flower: fedloom flower CONFIG.yaml --output_path FOLDER",
        FlowerConfig,
        check_flower,
        _flower,
        "config",
    ),
    "peer": Command(
        "Be one peer of a federation without a server, on a real network (libp2p).",
        PeerConfig,
        check_peer,
        _peer,
    ),
    "identity": Command(
        "Make a peer's key, unless it is there, and print its peer id.",
        IdentityConfig,
        check_rules,
        _identity,
        "key",
    ),
    "audit": Command(
        "Hold the journals of all peers against each other: fedloom audit RUN [RUN ...]",
        AuditConfig,
        check_rules,
        _audit,
        "runs",
    ),
    "methods": Command(
        "List the methods of the literature, and what each sets.",
        MethodsConfig,
        check_rules,
        _methods,
    ),
    "split": Command("Divide a data set into clients' folders.", SplitConfig, check_rules, _split),
    "view": Command("Show who has how many of which label.", ViewConfig, check_rules, _view, "folder"),
    "topology": Command(
        "Show a graph of peers, its mixing matrix and its spectral gap.",
        TopologyConfig,
        check_rules,
        _topology,
        "name",
    ),
    "eval": Command(
        "Judge a model, or adapters: answers right, or classes right.", EvalConfig, check_eval, _eval
    ),
    "report": Command(
        "Show runs and compare them, on one page: fedloom report RUN [RUN ...] -o report.html",
        ReportConfig,
        check_rules,
        _report,
        "runs",
        {"-o": "--output"},
    ),
    "demo": Command(
        "Watch a small model learn arithmetic in minutes, offline.", DemoConfig, check_values, _demo
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fedloom` with the words of `argv` (by default the process's own) and return the exit status.

    0: done. 1: an audit found that something does not hold. 2: a mistake of the user, told on stderr in one
    message. 130: interrupted. 143: terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"fedloom {_version()}")
        return 0
    try:
        with ended_by_sigterm():
            return _dispatch(words[0], words[1:])
    except UserError as error:
        if tells(error):
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
            f"unknown command {shown(name)}{did_you_mean(name, COMMANDS)} (`fedloom --help` lists all)"
        )
    prog = f"fedloom {name}"
    if "--help" in words or "-h" in words:
        print(help_text(command.config_class, prog=prog, description=command.summary))
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
    config = parse(command.config_class, words, prog=prog)
    command.check(config)
    return config


def _version() -> str:
    try:
        return version("fedloom")
    except PackageNotFoundError:
        return "(not installed)"


def _overview() -> str:
    lines = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fedloom COMMAND [--option value ...]",
            "",
            "Federated fine-tuning of language models.",
            "",
            "commands:",
            *lines,
            "",
            "`fedloom COMMAND --help` lists a command's options, `fedloom --version` prints the version.",
        ]
    )
