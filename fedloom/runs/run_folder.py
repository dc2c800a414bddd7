"""The folder of a run that begins, or goes on: whose it is, whether it is the same run, who holds what in it.

One process at a time writes into it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml
from filelock import FileLock, Timeout

from fedloom.errors import UserError
from fedloom.options.declare import options
from fedloom.options.parsing import RUN_CONFIG, RUN_RECORD, read_options
from fedloom.options.run import Run
from fedloom.runs.checkpoint import intact_checkpoint
from fedloom.runs.contents import OPTIONS_DIGEST, check_options, command_of, digest_of_options
from fedloom.runs.files import TEMPORARY, remove, write_atomically, writing
from fedloom.runs.metrics import METRICS_FILE
from fedloom.runs.reading import read_mapping

if TYPE_CHECKING:
    import numpy as np

    from fedloom.data.encode import Tokens

log = logging.getLogger(__name__)

C = TypeVar("C", bound=Any)

CLIENTS_FILE = "clients.json"
LOCK_FILE = ".lock"
HOLDER_FILE = ".holder.json"
NO_LABEL = "no label"
INPUTS = "inputs"
"""What the record in config.yaml calls the digests of `fedloom.runs.inputs`."""


@dataclass(frozen=True)
class Opened(Generic[C]):
    """A run's folder that this process alone writes.

    Attributes:
        config: The options; `auto` is what it was when the run began.
        checkpoint: Where to go on from; None starts from the beginning.
        inputs: Digests of what the run has read so far; empty for a new run.
    """

    config: C
    checkpoint: Path | None
    inputs: dict[str, str]


@contextmanager
def opened(folder: Path, config: C) -> Iterator[Opened[C]]:
    """Make a folder ready for the run of ``config``, and be its only writer within.

    Args:
        folder: The run's folder.
        config: A dataclass of options with `resume`.

    Raises:
        UserError: Another process writes there; the folder holds another run, or there is nothing to resume,
            or other options than the run's are given; or it cannot be made.
    """
    check_folder(folder, config.resume)
    with sole_writer(folder):
        check_folder(folder, config.resume)  # again: another start may have been quicker
        if not config.resume:
            yield Opened(config, None, {})
            return
        content = read_mapping(folder / RUN_CONFIG)
        check_options(folder / RUN_CONFIG, content, command_of(content))
        config = as_before(folder, config)
        check_same_run(folder, config)
        yield Opened(config, intact_checkpoint(folder), inputs_of(folder))


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder; those that only read it need not ask.

    The kernel gives the lock back when the process ends, however it ends: a killed run leaves nothing to
    clean up. Unfinished files of one that was killed are removed.

    Args:
        folder: Made where it is missing.

    Raises:
        UserError: Another process writes there; says which, on which machine and since when.
        CannotWrite: The folder cannot be written.
    """
    with writing(folder, then="start again"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{folder}: {_holder(folder)} is writing here; wait until it has ended, stop it, or take "
                "another name for this one"
            ) from None
    try:
        for stray in folder.glob(f"{TEMPORARY}*"):
            remove(stray)
        write_atomically(folder / HOLDER_FILE, json.dumps(_myself()) + "\n", then="start again")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER_FILE).unlink()
        lock.release()


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    }


def _holder(folder: Path) -> str:
    """Who holds the lock, in words; it may not have said so yet."""
    try:
        who = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']},"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def check_folder(folder: Path, resume: bool) -> None:
    """Make sure that a run may write to `folder`, which is looked at only.

    Raises:
        UserError: The folder holds another run, or there is nothing to resume.
    """
    if resume:
        if not (folder / RUN_CONFIG).is_file():
            raise UserError(f"{folder}: no run to resume here (no {RUN_CONFIG}); check exp_name and out_dir")
    elif any((folder / name).exists() for name in (RUN_CONFIG, METRICS_FILE, "checkpoints")):
        raise UserError(
            f"{folder}: holds another run; add --resume to continue it, or take another --exp_name"
        )


def write_run_config(
    folder: Path,
    config: Any,
    versions: Mapping[str, str],
    device: str,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Write config.yaml: every option but secrets, then versions, device and inputs of this run.

    The file can be given to `--config` again.

    Args:
        folder: The run's folder.
        config: A dataclass of options.
        versions: Version by package name.
        device: The device that the run uses, for example `cpu` or `cuda:0`.
        inputs: Digests of what the run reads, by name.
    """
    # How the options were given is no part of the run; secrets never reach the disk.
    values = {
        option.name: getattr(config, option.name)
        for option in options(type(config))
        if not option.secret and option.name not in ("config", "resume")
    }
    record: dict[str, Any] = {"device": device, "versions": dict(versions)}
    record |= {INPUTS: dict(inputs)} if inputs else {}
    record[OPTIONS_DIGEST] = digest_of_options(values, command_of(values))
    content = yaml.safe_dump(values | {RUN_RECORD: record}, sort_keys=False)
    write_atomically(folder / RUN_CONFIG, content, then="start again")


def write_clients(
    folder: Path,
    train: Sequence[Tokens],
    clients: Sequence[np.ndarray],
    validation: Sequence[Sequence[Tokens]],
    *,
    server: int = 0,
) -> None:
    """Write clients.json to a run's folder, with counts alone, so that a thousand clients take few kilobytes.

    Only this user may read it.

    For the arguments after the run's folder see `client_counts`.
    """
    content = client_counts(train, clients, validation, server=server)
    write_atomically(folder / CLIENTS_FILE, json.dumps(content) + "\n", private=True)


def client_counts(
    train: Sequence[Tokens],
    clients: Sequence[np.ndarray],
    validation: Sequence[Sequence[Tokens]],
    *,
    server: int = 0,
) -> dict[str, Any]:
    """Count each client's examples and labels.

    Args:
        train: All training sequences.
        clients: For each client the indices of its own.
        validation: One list of sequences, or one for each client; the same list may stand there many times.
        server: How many training sequences the server keeps.

    Returns:
        `examples`, a number per client; `labels`, for each label a number per client, empty where no example
        has one; `validation`, the size of every distinct list; `server`.
    """
    found = [Counter(train[i].kind or NO_LABEL for i in indices.tolist()) for indices in clients]
    labels = sorted({label for counter in found for label in counter})
    return {
        "examples": [len(indices) for indices in clients],
        "labels": {}
        if labels == [NO_LABEL]
        else {label: [counter[label] for counter in found] for label in labels},
        "validation": [len(part) for part in {id(part): part for part in validation}.values()],
        "server": server,
    }


def inputs_of(folder: Path) -> dict[str, str]:
    """The digests in a run's config.yaml; empty, with a warning, for a run of an earlier version."""
    record = read_mapping(folder / RUN_CONFIG).get(RUN_RECORD)
    found = record.get(INPUTS) if isinstance(record, dict) else None
    if not isinstance(found, dict) or not found:
        log.warning(
            "%s has no digests of data and base, so nobody can tell whether they are still the same", folder
        )
        return {}
    return {str(name): str(digest) for name, digest in found.items()}


def as_before(folder: Path, config: C) -> C:
    """The options of a run that goes on, with what `auto` turned out to be when it began."""
    saved = read_options(folder / RUN_CONFIG, type(config))
    auto = [option.name for option in options(type(config)) if getattr(config, option.name) == "auto"]
    return replace(config, **{name: saved[name] for name in auto if name in saved})


def check_same_run(folder: Path, config: Any) -> None:
    """Make sure that `config` continues the run in `folder`.

    Options that a round's mathematics does not depend on may differ; they are declared `free` in
    `fedloom.options.fed`.

    Raises:
        UserError: Other options differ; names each with both values.
    """
    saved = read_options(folder / RUN_CONFIG, type(config))
    changed = [
        f"{option.name} was {was}, now {now}"
        for option in options(type(config))
        for was, now in [(saved.get(option.name, option.default), getattr(config, option.name))]
        if was != now and not option.free
    ]
    if changed:
        raise UserError(
            f"{folder}: cannot resume with other options: {'; '.join(changed)}. "
            "Leave them out, or take another --exp_name"
        )


def run_folder(config: Run) -> Path:
    """Where a run leaves its files."""
    return Path(config.out_dir) / config.exp_name
