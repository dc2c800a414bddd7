"""What each command does once its options are judged: import what does the work, and hand it the options."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedloom.options.audit_privacy import AuditPrivacyConfig
from fedloom.options.compare import CompareConfig
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


@contextmanager
def _begin(config: Any, words: str) -> Iterator[None]:
    """For the block that imports what does the work: say before what is done, and tell mistyped paths."""
    if place().leads and sys.stderr.isatty():
        print(f"{words}, loading …", file=sys.stderr, flush=True)
    from fedloom.commands.check_paths import check_paths

    check_paths(config)
    with loading():
        yield


def fed(config: FedConfig, **more: Any) -> None:
    """Trains with a server, and says where the adapter is; `more` is what `run_fed` takes besides."""
    with _begin(config, f"fedloom fed: {config.model_name} on {config.data_name}"):
        from fedloom.commands.fed import run_fed

    run = run_fed(config, **more)
    if place().leads:
        print(f"Adapter: {run.checkpoint}")


def dfl(config: DflConfig, **more: Any) -> None:
    """Trains on a graph, and says where the adapters are; `more` is what `run_dfl` takes besides."""
    with _begin(config, f"fedloom dfl: {config.model_checkpoint} on {config.dataset_type}"):
        from fedloom.commands.dfl import run_dfl

    run = run_dfl(config, **more)
    if place().leads:
        print(f"Adapters, one per peer: {run.checkpoint}")


def flower(config: FlowerConfig) -> None:
    """Writes the app, and says how it is started."""
    from fedloom.commands.flower import start_command, write_app

    folder = write_app(config)
    print(f"App: {folder}. Start it with: {start_command(config)}")


def peer(config: PeerConfig) -> None:
    """Trains as one peer, and says where its adapter is."""
    with _begin(config, f"fedloom peer: {config.model_checkpoint} on {config.dataset_type}"):
        from fedloom.training.peer import run_peer

    run = run_peer(config)
    print(f"Adapter: {run.checkpoint}")


def identity(config: IdentityConfig) -> None:
    """Makes the key, and prints the peer id."""
    from fedloom.runtimes.libp2p.identity import make_identity

    print(make_identity(Path(config.key)))


def audit(config: AuditConfig) -> int:
    """Reads the journals; status 1 where one is wrong or two disagree."""
    from fedloom.commands.audit import run_audit

    return 0 if run_audit(config.runs) else EXIT_DOES_NOT_HOLD


def audit_privacy(config: AuditPrivacyConfig) -> int:
    """Plays the attack; status 1 where it shows more than the proven epsilon."""
    with _begin(config, f"fedloom audit-privacy: {config.model_name} on {config.data_name}"):
        from fedloom.commands.audit_privacy import run_audit_privacy

    return 0 if run_audit_privacy(config) else EXIT_DOES_NOT_HOLD


def split(config: SplitConfig) -> None:
    """Writes the clients' folders."""
    from fedloom.commands.split import run_split

    run_split(**asdict(config))


def view(config: ViewConfig) -> None:
    """Prints or draws who has what."""
    from fedloom.commands.view import run_view

    run_view(**asdict(config))


def topology(config: TopologyConfig) -> None:
    """Prints the graph."""
    from fedloom.commands.topology import run_topology

    run_topology(**asdict(config))


def eval(config: EvalConfig) -> None:
    """Judges, and prints the scores."""
    with _begin(config, f"fedloom eval: {config.adapter or config.model}"):
        from fedloom.commands.eval import run_eval

    run_eval(config)


def chat(config: ChatConfig) -> None:
    """Talks until the user leaves."""
    with _begin(config, f"fedloom chat: {config.adapter}"):
        from fedloom.commands.chat import run_chat

    run_chat(config)


def merge(config: MergeConfig) -> None:
    """Writes the merged model."""
    with _begin(config, f"fedloom merge: {config.adapter}"):
        from fedloom.commands.merge import run_merge

    run_merge(config)


def report(config: ReportConfig) -> None:
    """Writes the page."""
    from fedloom.commands.report import run_report

    run_report(**asdict(config))


def compare(config: CompareConfig) -> int:
    """Runs the grid; status 1 where a run failed."""
    assert config.file is not None
    with _begin(config, f"fedloom compare: {config.file}"):
        from fedloom.commands.compare import run_compare

    failed = run_compare(Path(config.file), Path(config.out_dir), config.jobs)
    return EXIT_DOES_NOT_HOLD if failed else 0


def methods(config: MethodsConfig) -> None:
    """Prints the table of methods."""
    from fedloom.commands.methods import run_methods

    run_methods(as_json=config.json, plugin=config.plugin)


def completion(config: CompletionConfig) -> None:
    """Prints the shell's script."""
    from fedloom.commands.completion import run_completion

    run_completion(config.shell)


def demo(config: DemoConfig) -> None:
    """Trains, with a word before the libraries load, which takes seconds."""
    within = ", in two to four minutes" if config.rounds is None else ""
    print(f"fedloom demo: four clients teach a small model arithmetic{within}.", flush=True)
    print("Loading libraries and model …", flush=True)
    with loading():
        from fedloom.commands.demo import run_demo

    run_demo(**asdict(config))
