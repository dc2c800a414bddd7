"""The weights of a GGUF file as an ordinary model's folder in the cache, which adapters name as their base.

What trains are the dequantised numbers, and no name on the hub has these: an adapter must be loaded beside
the weights that it was trained on. PEFT cannot name a file within a folder. So they are written down once,
in float32, under a name with the file's SHA-256; afterwards they are also read faster than the file.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from fedloom.errors import UserError
from fedloom.model.files import check_files
from fedloom.model.gguf_file import dequantise_options, forget_quantisation
from fedloom.model.numbers import check_finite
from fedloom.model.source import Source
from fedloom.model.weights import check_weights
from fedloom.runs.files import TEMPORARY, remove, sync_tree, writing
from fedloom.runs.reading import sha256_of

_THEN = "start again, or set HF_HOME to a folder that can be written"


def in_cache(source: Source) -> Source | None:
    """The folder that holds a GGUF file's weights; None where none has been written yet.

    Args:
        source: A GGUF file.
    """
    folder = folder_of(source)
    found = replace(source, name=str(folder), location=str(folder), gguf_file=None)
    try:
        check_files(found)
    except (UserError, OSError):  # not there, or damaged: it will be written again
        return None
    return found


def write_to_cache(source: Source, files: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Source:
    """Write a GGUF file's weights into a folder, once, whoever else may be about it at the same time.

    Args:
        source: A GGUF file.
        files: What transformers' loaders need to find it.
        tokenizer: Its tokenizer.

    Returns:
        The folder, which is there whole or not at all.

    Raises:
        UserError: The file lacks tensors, or its numbers are not finite.
        CannotWrite: The system refuses.
    """
    folder = folder_of(source)
    with writing(folder, then=_THEN):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if found := in_cache(source):
                return found
            model, report = AutoModelForCausalLM.from_pretrained(
                **{**files, "dtype": torch.float32},
                **dequantise_options(),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            check_weights(model, report, source.name, classify=False)
            check_finite(model, source.name)
            forget_quantisation(model)
            temporary = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
            try:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                sync_tree(temporary)
                remove(folder)  # a damaged one
                os.rename(temporary, folder)
            except BaseException:
                with suppress(OSError):
                    remove(temporary)
                raise
    found = in_cache(source)
    assert found is not None, "it was written just now"
    return found


def folder_of(source: Source) -> Path:
    """Where the weights of a GGUF file are, or will be."""
    assert source.gguf_file is not None
    stem = Path(source.gguf_file).stem
    return Path(huggingface_hub.constants.HF_HOME) / "fedloom" / f"{stem}-{digest_of(source)[:16]}"


def digest_of(source: Source) -> str:
    """SHA-256 of a GGUF file, which a process reads once."""
    assert source.gguf_file is not None
    path = Path(source.location) / source.gguf_file
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)
