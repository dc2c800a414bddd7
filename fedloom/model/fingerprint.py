"""Short names of a base model's weights and of its tokenizer: who trains together must have the same.

Weights are looked at as the files hold them, tensor by tensor, so that the name depends neither on the device
nor on the dtype that a process computes in, nor on `quantize`, or on how many files there are:

    sha256 of each tensor's name, dtype, shape and some 256 of its values, in the order of names

That tells another model, another revision, another quantisation and files that are damaged in more than a
few places. A GGUF file is read whole, since its digest is needed anyway (`model.dequantised`). It is for
mistakes: who means to have other weights can give any name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedloom.model.dequantised import digest_of
from fedloom.model.files import weight_files
from fedloom.model.source import explained, locate

SAMPLED = 256
"""Values that are looked at of a tensor, about; of a smaller one all."""

_PROBE = (
    "The quick brown fox (1,234.5 kg) doesn't\tjump; it  sleeps.\n\nÉté, Straße, Ελλάδα, Москва, 東京, "
    "สวัสดี, مرحبا, 🙂👩‍👩‍👧 e\u0301 def f(x):\n    return x**2 # ok </s> <|im_end|> [SEP]"
)
"""Letters, digits, marks, spaces, several scripts and what other models end with."""


def fingerprints(name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Of a model that has been loaded: those of its ``weights`` and its ``tokenizer``.

    Raises:
        UserError: A file cannot be read.
    """
    return {"weights": weights_fingerprint(name), "tokenizer": tokenizer_fingerprint(tokenizer)}


def weights_fingerprint(name: str) -> str:
    """Of the weights that a model's files hold; equal for equal weights. "" where there are no files here.

    Args:
        name: Of the model, which has been loaded.

    Raises:
        UserError: A file cannot be read.
    """
    source = locate(name)
    if not source.local:
        return ""
    if source.gguf_file:
        return f"gguf-{digest_of(source)[:16]}"
    digests: dict[str, str] = {}
    with explained(source, "its weights"):
        for file in weight_files(source):
            for tensor, t in _tensors(Path(source.location) / file):
                digests[tensor] = _digest(t)
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of a tokenizer: its vocabulary, and what it makes of a text. Chat templates are no part of it."""
    try:
        ids = list(tokenizer(_PROBE).input_ids)
    except Exception:  # one without an unknown token may not take every letter
        ids = []
    digest = hashlib.sha256(repr(ids).encode())
    with contextlib.suppress(NotImplementedError):  # one of bytes may have none
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()[:16]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Of a file of weights, mapped: only what is looked at is read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = file.keys()
            for name in names:
                yield name, file.get_tensor(name)
        return
    held = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    yield from ((name, t) for name, t in held.items() if isinstance(t, Tensor))


def _digest(t: Tensor) -> str:
    flat = t.reshape(-1)
    # An odd step, or it would meet the same few columns of a matrix.
    some = torch.cat([flat[:: (len(flat) // SAMPLED) | 1], flat[-1:]])
    about = f"{t.dtype} {tuple(t.shape)}\n".encode()
    return hashlib.sha256(about + some.view(torch.uint8).numpy().tobytes()).hexdigest()
