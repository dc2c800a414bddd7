"""The validation before the first round, once for all runs that begin alike.

Runs that differ in their method, graph or clients begin from one adapter and are judged by one set, and that
first validation may take longer than all else before the first round. What it came to is a function of the
model's numbers, the adapter's, the sequences and the code, so it is kept under a digest of all these.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

import fedloom
from fedloom.data.encode import Tokens
from fedloom.evaluation.evaluate import Validation, validate_rows
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.stacked import StackedModel
from fedloom.runs.files import CannotWrite, write_atomically
from fedloom.runtimes.group import ALONE, Group

log = logging.getLogger(__name__)

WORTH_SECONDS = 1.0
"""Of processor time; what takes less is not kept."""
MOST_KEPT = 500

CPUINFO = Path("/proc/cpuinfo")
PROCESSOR_FIELDS = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),  # x86
    *("cache size", "siblings", "cpu cores"),  # by which libraries cut matrices into blocks
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),  # Arm
}
LIBRARY_SETTINGS = ("MKL_", "ONEDNN_", "DNNL_", "KMP_", "OMP_")
"""Beginnings of the environment variables that the libraries of matrices look at."""


def first_validation(
    model: StackedModel,
    bank: AdapterBank,
    sequences: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    frozen: Row | None = None,
    group: Group = ALONE,
) -> list[Validation]:
    """As `evaluate.validate_rows`, of what nobody has trained; on a CPU perhaps as an earlier run found it.

    Several processes at once may write the same entry: it is the same numbers, there whole or not at all.
    Entries that cannot be read or written are as if there were none.
    """
    if group.size > 1 or model.device.type != "cpu":
        return validate_rows(model, bank, sequences, wave_tokens, frozen, group)
    folder = Path(huggingface_hub.constants.HF_HOME) / "fedloom" / "first-validations"
    try:
        file = folder / f"{_digest(model, bank.tensors | (frozen or {}), sequences, wave_tokens)}.json"
    except (OSError, TypeError, ValueError, AttributeError, RuntimeError):  # what has no digest is not kept
        return validate_rows(model, bank, sequences, wave_tokens, frozen, group)
    with suppress(OSError, ValueError, TypeError):
        pairs = json.loads(file.read_bytes())
        found = [Validation(float(loss), float(accuracy)) for loss, accuracy in pairs]
        if len(found) != len(sequences):
            raise ValueError
        log.info("the first validation is known of an earlier run (%s)", file)
        return found
    began = time.process_time()
    found = validate_rows(model, bank, sequences, wave_tokens, frozen, group)
    if time.process_time() - began > WORTH_SECONDS:
        with suppress(OSError, CannotWrite):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps([[one.loss, one.accuracy] for one in found]))
            for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
                old.unlink()
    return found


def _digest(
    model: StackedModel, adapter: Row, sequences: Sequence[Sequence[Tokens]], wave_tokens: int
) -> str:
    """Of everything that the numbers depend on, to the last bit; of no name of a host or a folder."""
    versions = [platform.python_version(), *(version(name) for name in ("torch", "transformers", "peft"))]
    libraries = [*versions, torch.__config__.show(), platform.libc_ver()]
    settings = sorted(item for item in os.environ.items() if item[0].startswith(LIBRARY_SETTINGS))
    machine = [processors(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), settings]
    configs = [
        _numbers(model.model.config.to_dict()),
        _numbers(model.config.to_dict() if model.config else {}),
    ]
    how = [wave_tokens, model.beta, repr(model.layout), torch.get_float32_matmul_precision()]
    about = json.dumps([libraries, machine, _code(model), configs, how], default=_plain, sort_keys=True)
    digest = hashlib.sha256(about.encode())
    for name, t in sorted({**model.model.state_dict(), **adapter}.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)} {t.stride()}".encode())
        digest.update(t.detach().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(repr(sequences).encode())
    return digest.hexdigest()


def processors() -> list[list[str]]:
    """The kinds of processor there are, by which libraries choose how they add, whatever the host is called.

    A container has a name of its own on every start. Where the system has no such list the host's name stands
    for its processor.
    """
    try:
        blocks = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")
    except OSError:
        blocks = []
    lines = [[" ".join(line.split()) for line in block.splitlines()] for block in blocks]
    kinds = [[line for line in block if line.partition(" :")[0] in PROCESSOR_FIELDS] for block in lines]
    return sorted({tuple(kind): kind for kind in kinds if kind}.values()) or [
        [platform.machine(), platform.processor(), platform.node()]
    ]


def _code(model: StackedModel) -> list[str]:
    """This package and the model's own modules, by what the files hold: a copy computes the same."""
    files = {*Path(fedloom.__file__).parent.rglob("*.py")}
    files |= {Path(inspect.getfile(type(module))) for module in model.model.modules()}
    return sorted(f"{path.name} {_digest_of_file(path)}" for path in files)


@cache  # what has been imported runs on as it was, whatever becomes of the file
def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbers(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.endswith("name_or_path")}


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else repr(value)
