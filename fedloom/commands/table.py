"""The commands that a user types, as a table.

A command is a dataclass of options, a check and a function of `start.py`; what does the work is imported only
when it is asked for, so that `--help` and a mistyped flag answer without loading torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedloom.commands import start
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


COMMANDS: dict[str, Command] = {
    "fed": Command(
        "Fine-tune one model across many clients, with a server.",
        FedConfig,
        check,
        start.fed,
        check_named=partial(check_trained_on, "fed"),
    ),
    "dfl": Command("Fine-tune across peers on a graph, without a server.", DflConfig, check_dfl, start.dfl),
    "flower": Command(
        "Write an app that runs a federation over Flower: fedloom flower CONFIG.yaml --output_path FOLDER",
        FlowerConfig,
        check_flower,
        start.flower,
        "config",
        check_named=partial(check_trained_on, "flower"),
    ),
    "peer": Command(
        "Be one peer of a federation without a server, on a real network (libp2p).",
        PeerConfig,
        check_peer,
        start.peer,
    ),
    "identity": Command(
        "Make a peer's key, unless it is there, and print its peer id.",
        IdentityConfig,
        check_rules,
        start.identity,
        "key",
    ),
    "audit": Command(
        "Hold the journals of all peers against each other: fedloom audit RUN [RUN ...]",
        AuditConfig,
        check_rules,
        start.audit,
        "runs",
    ),
    "audit-privacy": Command(
        "Measure what an attacker can tell of a private run: a lower bound on epsilon, by canaries.",
        AuditPrivacyConfig,
        check_audit_privacy,
        start.audit_privacy,
        check_named=partial(check_trained_on, "audit-privacy"),
    ),
    "methods": Command(
        "List the methods of the literature, and what each sets.",
        MethodsConfig,
        check_rules,
        start.methods,
    ),
    "split": Command(
        "Divide a data set into clients' folders.",
        SplitConfig,
        check_split,
        start.split,
        check_named=check_divided,
    ),
    "view": Command("Show who has how many of which label.", ViewConfig, check_rules, start.view, "folder"),
    "topology": Command(
        "Show a graph of peers, its mixing matrix and its spectral gap.",
        TopologyConfig,
        check_rules,
        start.topology,
        "name",
    ),
    "eval": Command(
        "Judge a model, or adapters: answers right, or classes right.", EvalConfig, check_eval, start.eval
    ),
    "chat": Command(
        "Talk to a run's adapters in the terminal: fedloom chat RUN",
        ChatConfig,
        check_chat,
        start.chat,
        "adapter",
    ),
    "merge": Command(
        "Make an ordinary model of base and adapter: fedloom merge RUN --output_path FOLDER",
        MergeConfig,
        check_merge,
        start.merge,
        "adapter",
    ),
    "report": Command(
        "Show runs and compare them, on one page: fedloom report RUN [RUN ...] -o report.html",
        ReportConfig,
        check_rules,
        start.report,
        "runs",
        {"-o": "--output"},
    ),
    "compare": Command(
        "Run a grid of methods and settings over seeds, and compare them: fedloom compare FILE.yaml",
        CompareConfig,
        check_compare,
        start.compare,
        "file",
    ),
    "completion": Command(
        'Let a shell complete all this: eval "$(fedloom completion bash)"',
        CompletionConfig,
        check_rules,
        start.completion,
        "shell",
    ),
    "demo": Command(
        "Watch a small model learn arithmetic in minutes, offline.", DemoConfig, check_values, start.demo
    ),
}
