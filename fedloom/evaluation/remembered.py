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
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

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
    """Of everything that the numbers depend on, to the last bit: the machine and its threads, too."""
    files = {*Path(fedloom.__file__).parent.rglob("*.py")}
    files |= {Path(inspect.getfile(type(module))) for module in model.model.modules()}  # the model's own, too
    code = sorted((str(p), p.stat().st_mtime_ns) for p in files)
    versions = [platform.python_version(), *(version(name) for name in ("torch", "transformers", "peft"))]
    machine = [platform.node(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    configs = [model.model.config.to_dict(), model.config and model.config.to_dict()]
    how = [wave_tokens, model.beta, repr(model.layout), torch.get_float32_matmul_precision()]
    about = json.dumps([versions, machine, code, configs, how], default=_plain, sort_keys=True)
    digest = hashlib.sha256(about.encode())
    for name, t in sorted({**model.model.state_dict(), **adapter}.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)} {t.stride()}".encode())
        digest.update(t.detach().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(repr(sequences).encode())
    return digest.hexdigest()


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else repr(value)
