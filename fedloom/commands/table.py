"""The commands that a user types, as a table.

A command is a dataclass of options, a check and a function that does the work; the work is imported only when
it is asked for, so that `--help` and a mistyped flag answer without loading torch.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedloom.commands.examples import check_divided, check_trained_on
from fedloom.options.audit_privacy import AuditPrivacyConfig
from fedloom.options.audit_privacy import check as check_audit_privacy
from fedloom.options.check_export import check_chat, check_eval, check_merge
from fedloom.options.check_fed import check, check_rules, check_values
from fedloom.options.check_flower import check as check_flower
from fedloom.options.check_graph import check as check_dfl
from fedloom.options.check_graph import check_split
from fedloom.options.check_peer import check as check_peer
from fedloom.options.compare import CompareConfig
from fedloom.options.compare import check as check_compare
from fedloom.options.evaluation import EvalConfig
from fedloom.options.export import ChatConfig, MergeConfig, ReportConfig
from fedloom.options.fed import DemoConfig, FedConfig
from fedloom.options.flower import FlowerConfig
from fedloom.options.graph import DflConfig, SplitConfig, TopologyConfig, ViewConfig
from fedloom.options.help import CompletionConfig
from fedloom.options.method import MethodsConfig
from fedloom.options.peer import AuditConfig, IdentityConfig, PeerConfig
from fedloom.process import loading, place

EXIT_DOES_NOT_HOLD = 1


@dataclass(frozen=True)
class Command:
    """One command: what it does in a line, its options, how they are judged, and what runs.

    `run` returns the exit status; None is 0. That of `fed` and `dfl` takes what `run_fed` and `run_dfl` take.
    `first` is the option that a first word without dashes gives, where there is one; an option of several
    words takes all that follow. `short` are the flags of one letter, with the options that they stand for.
    `check_named` judges, by the names of the options that are given, whether what must be named is.
    """

    summary: str
    config_class: type[Any]
    check: Callable[[Any], None]
    run: Callable[..., int | None]
    first: str | None = None
    short: Mapping[str, str] = field(default_factory=dict)
    check_named: Callable[[Collection[str], Any], None] = lambda given, config: None


@contextmanager
def _begin(config: Any, words: str) -> Iterator[None]:
    """For the block that imports what does the work: say before what is done, and tell mistyped paths."""
    if place().leads and sys.stderr.isatty():
        print(f"{words}, loading …", file=sys.stderr, flush=True)
    from fedloom.commands.check_paths import check_paths

    check_paths(config)
    with loading():
        yield


def _fed(config: FedConfig, **more: Any) -> None:
    with _begin(config, f"fedloom fed: {config.model_name} on {config.data_name}"):
        from fedloom.commands.fed import run_fed

    run = run_fed(config, **more)
    if place().leads:
        print(f"Adapter: {run.checkpoint}")


def _dfl(config: DflConfig, **more: Any) -> None:
    with _begin(config, f"fedloom dfl: {config.model_checkpoint} on {config.dataset_type}"):
        from fedloom.commands.dfl import run_dfl

    run = run_dfl(config, **more)
    if place().leads:
        print(f"Adapters, one per peer: {run.checkpoint}")


def _flower(config: FlowerConfig) -> None:
    from fedloom.commands.flower import start_command, write_app

    folder = write_app(config)
    print(f"App: {folder}. Start it with: {start_command(config)}")


def _peer(config: PeerConfig) -> None:
    with _begin(config, f"fedloom peer: {config.model_checkpoint} on {config.dataset_type}"):
        from fedloom.training.peer import run_peer

    run = run_peer(config)
    print(f"Adapter: {run.checkpoint}")


def _identity(config: IdentityConfig) -> None:
    from fedloom.runtimes.libp2p.identity import make_identity

    print(make_identity(Path(config.key)))


def _audit(config: AuditConfig) -> int:
    from fedloom.commands.audit import run_audit

    return 0 if run_audit(config.runs) else EXIT_DOES_NOT_HOLD


def _audit_privacy(config: AuditPrivacyConfig) -> int:
    with _begin(config, f"fedloom audit-privacy: {config.model_name} on {config.data_name}"):
        from fedloom.commands.audit_privacy import run_audit_privacy

    return 0 if run_audit_privacy(config) else EXIT_DOES_NOT_HOLD


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
    with _begin(config, f"fedloom eval: {config.adapter or config.model}"):
        from fedloom.commands.eval import run_eval

    run_eval(config)


def _chat(config: ChatConfig) -> None:
    with _begin(config, f"fedloom chat: {config.adapter}"):
        from fedloom.commands.chat import run_chat

    run_chat(config)


def _merge(config: MergeConfig) -> None:
    with _begin(config, f"fedloom merge: {config.adapter}"):
        from fedloom.commands.merge import run_merge

    run_merge(config)


def _report(config: ReportConfig) -> None:
    from fedloom.commands.report import run_report

    run_report(**asdict(config))


def _compare(config: CompareConfig) -> int:
    assert config.file is not None
    with _begin(config, f"fedloom compare: {config.file}"):
        from fedloom.commands.compare import run_compare

    return EXIT_DOES_NOT_HOLD if run_compare(Path(config.file), Path(config.out_dir)) else 0


def _methods(config: MethodsConfig) -> None:
    from fedloom.commands.methods import run_methods

    run_methods(as_json=config.json, plugin=config.plugin)


def _completion(config: CompletionConfig) -> None:
    from fedloom.commands.completion import run_completion

    run_completion(config.shell)


def _demo(config: DemoConfig) -> None:
    # Before the libraries, which take seconds.
    within = ", in two to four minutes" if config.rounds is None else ""
    print(f"fedloom demo: four clients teach a small model arithmetic{within}.", flush=True)
    print("Loading libraries and model …", flush=True)
    with loading():
        from fedloom.commands.demo import run_demo

    run_demo(**asdict(config))


COMMANDS: dict[str, Command] = {
    "fed": Command(
        "Fine-tune one model across many clients, with a server.",
        FedConfig,
        check,
        _fed,
        check_named=partial(check_trained_on, "fed"),
    ),
    "dfl": Command("Fine-tune across peers on a graph, without a server.", DflConfig, check_dfl, _dfl),
    "flower": Command(
        "Write an app that runs a federation over Flower: fedloom flower CONFIG.yaml --output_path FOLDER",
        FlowerConfig,
        check_flower,
        _flower,
        "config",
        check_named=partial(check_trained_on, "flower"),
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
    "audit-privacy": Command(
        "Measure what an attacker can tell of a private run: a lower bound on epsilon, by canaries.",
        AuditPrivacyConfig,
        check_audit_privacy,
        _audit_privacy,
        check_named=partial(check_trained_on, "audit-privacy"),
    ),
    "methods": Command(
        "List the methods of the literature, and what each sets.",
        MethodsConfig,
        check_rules,
        _methods,
    ),
    "split": Command(
        "Divide a data set into clients' folders.",
        SplitConfig,
        check_split,
        _split,
        check_named=check_divided,
    ),
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
    "chat": Command(
        "Talk to a run's adapters in the terminal: fedloom chat RUN",
        ChatConfig,
        check_chat,
        _chat,
        "adapter",
    ),
    "merge": Command(
        "Make an ordinary model of base and adapter: fedloom merge RUN --output_path FOLDER",
        MergeConfig,
        check_merge,
        _merge,
        "adapter",
    ),
    "report": Command(
        "Show runs and compare them, on one page: fedloom report RUN [RUN ...] -o report.html",
        ReportConfig,
        check_rules,
        _report,
        "runs",
        {"-o": "--output"},
    ),
    "compare": Command(
        "Run a grid of methods and settings over seeds, and compare them: fedloom compare FILE.yaml",
        CompareConfig,
        check_compare,
        _compare,
        "file",
    ),
    "completion": Command(
        'Let a shell complete all this: eval "$(fedloom completion bash)"',
        CompletionConfig,
        check_rules,
        _completion,
        "shell",
    ),
    "demo": Command(
        "Watch a small model learn arithmetic in minutes, offline.", DemoConfig, check_values, _demo
    ),
}
