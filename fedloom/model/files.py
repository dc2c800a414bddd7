"""Whether a model's files are whole, as far as that shows without reading the weights.

A download that broke off is the commonest fault of a model folder. Every file that will be read is opened
here: JSON is parsed, and of each file of weights the header is read, which tells a file that is too short.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from safetensors import SafetensorError, safe_open

from fedloom.errors import UserError
from fedloom.model.source import WEIGHT_FILES, Source, explain_hub, locate, shards_of, unreachable

if TYPE_CHECKING:
    import torch

_LFS_POINTER = b"version https://git-lfs"


def check_model_name(name: str, token: str | None = None) -> None:
    """Say early, before anything heavy is done, that a model cannot be had.

    Asks the hub one small question where the model is not on this machine.

    Raises:
        UserError: no such path, damaged files, no such model on the hub, a gated model without access, or no
            hub in
            reach.
    """
    source = locate(name)
    if source.local:
        check_files(source)
        return
    try:
        _ask_hub(source.location, token or None)
    except Exception as error:
        raise explain_hub(source, error) or unreachable(source) from error


@cache
def _ask_hub(name: str, token: str | None) -> None:
    """Once in a process: the command line asks before torch is loaded, and whatever then trains asks, too."""
    huggingface_hub.auth_check(name, token=token)


def check_files(source: Source) -> None:
    """Look at the files of a model that lies on this machine.

    Raises:
        UserError: One is missing, broken off, of another kind, or a stand-in that Git LFS left.
    """
    if not source.local:
        return
    folder = Path(source.location)
    if source.gguf_file:
        with (folder / source.gguf_file).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise _damaged(source, source.gguf_file, "it is no GGUF file")
        return
    config = _json_object(source, "config.json")
    if not isinstance(config.get("model_type"), str) and "auto_map" not in config:
        raise _damaged(source, "config.json", "it names no model_type, so it is no model's configuration")
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model {source.name!r}: the folder also holds an adapter (adapter_config.json), which would be "
            "loaded with the model. Move the adapter's files into a folder of their own."
        )
    for name in ("tokenizer_config.json", "tokenizer.json", "generation_config.json"):
        if (folder / name).exists():
            _json_object(source, name)
    for name in weight_files(source):
        _check_weights(source, name)


def tensors_in(source: Source) -> dict[str, list[int]]:
    """The tensors in a model's files and their shapes, by the headers; {} where the files have none."""
    found: dict[str, list[int]] = {}
    for file in weight_files(source) if source.local and not source.gguf_file else ():
        if file.endswith(".safetensors"):
            with safe_open(Path(source.location) / file, "pt") as tensors:
                names = tensors.keys()
                found |= {name: tensors.get_slice(name).get_shape() for name in names}
    return found


def dtypes_in(source: Source) -> dict[str, torch.dtype]:
    """The tensors in a model's files and how their numbers are stored; {} where that cannot be seen."""
    import torch  # not at the top: a folder that is no model is told before torch is loaded

    found: dict[str, torch.dtype] = {}
    for file in weight_files(source) if source.local and not source.gguf_file else ():
        path = Path(source.location) / file
        if file.endswith(".safetensors"):
            with safe_open(path, "pt") as tensors:
                names = tensors.keys()
                for name in names:
                    part = tensors.get_slice(name)
                    # Nothing of a tensor, which says of what kind it is.
                    found[name] = part[:0].dtype if part.get_shape() else torch.float32
        elif zipfile.is_zipfile(path):
            with contextlib.suppress(Exception):  # whatever is wrong with it is told when it is read
                tensors = torch.load(path, map_location="meta", mmap=True, weights_only=True)
                found |= {name: t.dtype for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    return found


def weight_files(source: Source) -> list[str]:
    """The files of weights that transformers will read."""
    folder = Path(source.location)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [name]
        index = f"{name}.index.json"
        if (folder / index).is_file():
            content = _json_object(source, index)
            try:
                shards = sorted(shards_of(content))
            except ValueError as error:
                raise _damaged(source, index, str(error)) from None
            if not isinstance(content.get("metadata"), dict):
                raise _damaged(source, index, "it holds no metadata")
            absent = [shard for shard in shards if not _is_file(folder / shard)]
            if absent:
                raise UserError(
                    f"model {source.name!r}: {len(absent)} of {len(shards)} files of weights are not there "
                    f"({', '.join(shard[:80] for shard in absent[:3])}{', …' if absent[3:] else ''}). Fetch "
                    "them into the folder."
                )
            return shards
    raise UserError(
        f"model {source.name!r}: cannot be loaded, the folder holds no weights ({' or '.join(WEIGHT_FILES)}, "
        "or their index). Fetch them into it."
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file
        return False


def _check_weights(source: Source, name: str) -> None:
    path = Path(source.location) / name
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
        if head == _LFS_POINTER:
            raise _pointer(source, name)
        if name.endswith(".safetensors"):
            with safe_open(path, "np"):  # which loads no torch
                pass
        elif head.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise _damaged(source, name, "it is shorter than it says")
    except SafetensorError as error:
        size = path.stat().st_size
        raise _damaged(source, name, f"its header does not fit its {size:,} bytes: {error}") from None
    except OSError as error:
        raise _damaged(source, name, f"it cannot be read: {error.strerror}") from None


def _json_object(source: Source, name: str) -> dict[str, Any]:
    """A JSON file of a model, which must hold an object."""
    try:
        raw = (Path(source.location) / name).read_bytes()
        if raw.startswith(_LFS_POINTER):
            raise _pointer(source, name)
        content = json.loads(raw)
    except OSError as error:
        raise _damaged(source, name, f"it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        why = f"it is no JSON: {error}" if raw.strip() else f"it is empty ({len(raw)} bytes)"
        raise _damaged(source, name, why) from None
    if not isinstance(content, dict):
        raise _damaged(source, name, f"it holds {type(content).__name__} where names and values belong")
    return content


def _damaged(source: Source, name: str, why: str) -> UserError:
    return UserError(f"model {source.name!r}: its file {name} is damaged, {why[:200]}. Fetch it again.")


def _pointer(source: Source, name: str) -> UserError:
    return UserError(
        f"model {source.name!r}: {name} is a pointer that Git LFS left in the file's place. Run `git lfs "
        "pull` in the folder, or download the file."
    )
