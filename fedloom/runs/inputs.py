"""What a run reads: digests of it, so that a resumed run knows whether it still reads the same.

Options are compared when a run is resumed. This is for what they point at: rows of data, the base model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from fedloom.errors import UserError

WHOLE_BYTES = 64 << 20
"""Up to which a file is read whole; of a larger one a sample."""
SAMPLES, SAMPLE_BYTES = 1024, 4096
"""How many pieces of how many bytes a sample has, evenly over the file, its first and last bytes included."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class Inputs:
    """Digests of what a run reads, as it becomes known, against those that the run began with.

    Attributes:
        before: By name, as the run's config.yaml has them; empty for a new run.
        found: By name, as they are now.
    """

    def __init__(self, before: Mapping[str, str] | None = None) -> None:
        self.before: Mapping[str, str] = before or {}
        self.found: dict[str, str] = {}

    def note(self, name: str, digest: str) -> None:
        """Take down a digest.

        Args:
            name: Of the input, in the plural.
            digest: Equal texts for equal inputs.
        """
        self.found[name] = digest

    def check(self) -> None:
        """Make sure that all that has been taken down is what the run began with.

        Raises:
            UserError: Something is not; names all that is not.
        """
        differing = [
            f"the {name} are not those of the run (it began with {self.before[name]}; now there are {now})"
            for name, now in self.found.items()
            if self.before.get(name, now) != now
        ]
        if differing:
            raise UserError(
                f"resume: {', and '.join(differing)}; put the old ones back, or take another --exp_name"
            )


def digest_of_examples(parts: Sequence[Sequence[Any]]) -> str:
    """Digest of examples as they were read, in their order.

    Args:
        parts: One list, or one for each client: dataclass instances of plain values.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"part\n")
        for example in part:
            # What `astuple` gives, without its deep copy of every text.
            values = [getattr(example, entry.name) for entry in fields(example)]
            digest.update(json.dumps(values, default=astuple).encode() + b"\n")
    return _described(f"{sum(map(len, parts)):,} examples", digest)


def digest_of_tokens(parts: Sequence[Sequence[Any]]) -> str:
    """Digest of token ids and answers, which change with the tokenizer and its chat template too."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"part\n")
        for tokens in part:
            for side in tokens.sides:
                digest.update(np.asarray(side.ids, dtype=np.int64).tobytes() + b"\n")
                digest.update(np.asarray(side.answers, dtype=np.int64).tobytes())
    count = sum(len(side.ids) for part in parts for tokens in part for side in tokens.sides)
    return _described(f"{count:,} tokens", digest)


def digest_of_arrays(what: str, arrays: Iterable[np.ndarray]) -> str:
    """Digest of some arrays; `what` says in words how much there is."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
    return _described(what, digest)


def note_model(inputs: Inputs, folder: Path, gguf_file: str | None) -> None:
    """Take down a saved model: its configuration with code that comes along, and its weights.

    Args:
        inputs: Where to.
        folder: That holds it.
        gguf_file: The file's name, where it is one.

    Raises:
        UserError: It cannot be read.
    """
    if gguf_file is not None:
        inputs.note("base weights", _digest_of_files([folder / gguf_file]))
        return
    inputs.note("settings of the base", _digest_of_files([folder / "config.json", *folder.glob("*.py")]))
    kinds = [[*folder.glob(kind), *folder.glob(f"{kind}.index.json")] for kind in _WEIGHTS]
    inputs.note("base weights", _digest_of_files(next(filter(None, kinds), [])))


def _digest_of_files(paths: Iterable[Path]) -> str:
    digest, bytes_, count = hashlib.sha256(), 0, 0
    for path in sorted(paths):
        try:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if size <= WHOLE_BYTES:
                    digest.update(file.read())
                else:
                    for place in np.linspace(0, size - SAMPLE_BYTES, SAMPLES).astype(int):
                        file.seek(place)
                        digest.update(file.read(SAMPLE_BYTES))
        except OSError as error:
            raise UserError(f"model: {path} cannot be read ({error.strerror})") from None
        bytes_, count = bytes_ + size, count + 1
    return _described(f"{count} file{'s' * (count != 1)} of {decimal(bytes_)}", digest)


def _described(amount: str, digest: Any) -> str:
    return f"{amount}, sha256 {digest.hexdigest()[:32]}"
