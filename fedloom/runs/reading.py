"""Files of a run, read back: whatever is wrong with one is a user error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.errors import UserError
from fedloom.options.yaml_file import NotYaml, read_yaml

if TYPE_CHECKING:
    from torch import Tensor

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
