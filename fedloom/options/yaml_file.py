"""YAML from a file that anybody may have written: numbers, text, truth values, lists and mappings, no more.

The limits are far above what fedloom writes or asks for. They are there so that no file, by mistake or made
for it, costs more than a moment: nested a thousand times, or a few aliases that stand for billions of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedloom.errors import UserError, shown

LARGEST_FILE = 128 << 10
"""Bytes."""
DEEPEST = 20
"""Lists and mappings inside each other."""
MOST_VALUES = 20_000
"""Values of a file, those of an alias counted wherever it stands."""
LONGEST_NUMBER = 400
"""Characters of a number; the largest float has 309 digits."""

_TOO_MANY = f"it stands for more than {MOST_VALUES:,} values"
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"


class NotYaml(UserError):
    """A file that is not YAML as it is read here.

    Attributes:
        problem: What is wrong with it, and in which line.
    """

    def __init__(self, path: Path, problem: str, what: str, line: int | None = None) -> None:
        place = f", line {line}" if line is not None else ""
        super().__init__(f"{path}{place}: {problem}; {what}")
        self.problem = f"line {line}: {problem}" if line is not None else problem


class YamlFile(NamedTuple):
    """What a file holds.

    Attributes:
        content: Its one value; None for an empty file.
        lines: For each name of a mapping the line that it stands in, from 1.
    """

    content: Any
    lines: Mapping[Any, int]


def read_yaml(path: Path, what: str = "write lines of the form `name: value`") -> YamlFile:
    """Read a YAML file.

    Dates are text, since nothing here is a date. A name that stands twice in a mapping is an error.

    Args:
        path: Of the file.
        what: What to do about a file that is not YAML, for messages.

    Raises:
        NotYaml: It cannot be read, is not such YAML, or goes beyond the limits; the message has the line,
            but nothing that the file says, which may be a hub token.
    """
    text = _text(path, what)
    try:
        return deepcopy(_parsed(text))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _not_yaml(path, line, "a character that YAML does not allow", what) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = shown(", ".join(filter(None, (error.context, error.problem))))
        raise _not_yaml(path, mark.line + 1 if mark else None, problem, what) from None


@lru_cache(maxsize=4)  # a resumed run's config.yaml is read for its options, its record and its inputs
def _parsed(text: str) -> YamlFile:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return YamlFile(None, {})
        _check_size(root, {})
        content = loader.construct_document(root)
        lines = {}
        if isinstance(root, yaml.MappingNode):
            lines = {loader.construct_object(key): key.start_mark.line + 1 for key, _ in root.value}
        return YamlFile(content, lines)
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError):
        raise
    # The library's scanner lets through what Python's own functions raise, such as chr() of "\U00110000".
    except Exception as error:
        problem = f"a value that has no meaning, {type(error).__name__}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=loader.get_mark()) from None


def _text(path: Path, what: str) -> str:
    try:
        if path.exists() and not path.is_file():
            raise NotYaml(path, "is a folder or a device, not a file", what)
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise NotYaml(path, f"cannot be read ({error.strerror})", "give an existing file") from None
    if len(content) > LARGEST_FILE:
        problem = f"has more than {LARGEST_FILE >> 10} KiB, too much for a file that people write"
        raise NotYaml(path, problem, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_yaml(path, line, "it is not UTF-8 text", what) from None


def _not_yaml(path: Path, line: int | None, problem: str, what: str) -> NotYaml:
    return NotYaml(path, f"is not YAML as read here ({problem})", what, line)


def _check_size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for.

    Args:
        node: The node.
        known: Those of the nodes that have been counted, by id; 0 for those that are being counted.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.MarkedYAMLError(problem="it contains itself", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inside = node.value
    elif isinstance(node, yaml.MappingNode):
        inside = [part for pair in node.value for part in pair]
    size = 1 + sum(_check_size(part, known) for part in inside)
    if size > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=node.start_mark)
    known[id(node)] = size
    return size


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with fewer types and a limit on depth."""

    # Types that nothing here has a use for (dates, sets, binary ...) are unknown tags, and errors.
    yaml_constructors = {  # noqa: RUF012 - PyYAML's own way to say which types there are
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _TYPES
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.removeprefix(_TAG) not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.values += 1
        if self.depth > DEEPEST or self.values > MOST_VALUES:
            problem = f"nested more than {DEEPEST} times" if self.depth > DEEPEST else _TOO_MANY
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem="a name that stands twice; leave one of them out", problem_mark=key.start_mark
                )
            if name is not None:
                seen.add(name)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value):,} characters", problem_mark=node.start_mark
            )
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.MarkedYAMLError:
            raise
        except Exception:  # `!!bool abc` is a KeyError, `!!int abc` a ValueError ...
            kind = node.tag.removeprefix(_TAG)
            raise yaml.MarkedYAMLError(
                problem=f"a value that cannot be of the type {kind}", problem_mark=node.start_mark
            ) from None


# Numbers as a flag has them. YAML 1.1 has more: there 1_3 is 13, 010 is 8, 1:30 is 90, and 1e-3 is none.
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z|[-+]?[0-9]+[eE][-+]?[0-9]+\Z"
        r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)
