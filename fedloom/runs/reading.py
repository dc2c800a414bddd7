"""Files of a run, read back: whatever is wrong with one is a user error that names it.

A checkpoint's files have checksums, so that a flipped bit is noticed before anything is computed from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.errors import UserError
from fedloom.options.yaml_file import NotYaml, read_yaml

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUMS_FILE = "checksums.json"
_LONGEST_REASON = 200


class Damaged(UserError):
    """A file that is not as fedloom wrote it.

    Attributes:
        path: Which.
        why: What is wrong with it, on one line.
    """

    def __init__(self, path: Path, why: object, way_out: str = "put a copy back, or remove it"):
        first = str(why).strip().split("\n")[0][:_LONGEST_REASON] or type(why).__name__
        super().__init__(f"{path} is not as fedloom wrote it ({first}); {way_out}")
        self.path, self.why = path, first


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        Damaged: It cannot be read, or is not JSON.
    """
    return _parsed(path, json.loads)


def read_mapping(path: Path) -> dict[str, Any]:
    """A file with one mapping, JSON or, by its name, YAML; empty where there is no such file.

    Raises:
        Damaged: It cannot be read, or holds something else.
    """
    if not path.is_file():
        return {}
    content = _yaml(path) if path.suffix == ".yaml" else _parsed(path, json.loads)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise Damaged(path, "it holds no mapping of names")
    return content


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(path, error.strerror) from None
    except RecursionError:
        raise Damaged(path, "it is nested too deep") from None
    except ValueError as error:
        raise Damaged(path, error) from None


def _yaml(path: Path) -> Any:
    try:
        return read_yaml(path).content
    except NotYaml as error:
        raise Damaged(path, error.problem) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        Damaged: It cannot be read, or is no such file.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    # The parser's own errors are many: a header that is cut, no JSON, or names what there is not.
    except Exception as error:
        raise Damaged(path, error) from None


def write_checksums(folder: Path) -> None:
    """Write SHA-256 of every file below a folder into a file in it: ``{relative path: hex digits}``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def verify(path: Path) -> None:
    """Make sure that a file is as it was written, where its folder or one above it has checksums.

    Folders of other programs have none, and neither have those of earlier versions.

    Raises:
        Damaged: Its content is not the one that was written.
    """
    for folder in path.parents[:2]:
        listed = folder / CHECKSUMS_FILE
        if not listed.is_file():
            continue
        sums = read_json(listed)
        name = path.relative_to(folder).as_posix()
        if not isinstance(sums, dict) or not isinstance(sums.get(name), str):
            raise Damaged(listed, f"it has no checksum of {name}")
        if sha256_of(path) != sums[name]:
            raise Damaged(path, f"its content is not what was written, as {CHECKSUMS_FILE} has it")
        return


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex digits.

    Raises:
        Damaged: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(path, error.strerror or "it cannot be read") from None
