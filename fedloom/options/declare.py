"""How an option is declared in a dataclass, and read back as a table of options."""

import dataclasses
import re
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedloom.errors import HIDDEN, is_plain, looks_like_a_token, shown
from fedloom.options.synonyms import did_you_mean, values_of_others, why_not

_PATTERN = re.compile(r"[*+?|^$\\()\[\]{}]")

WORDS = tuple[str, ...]
"""The type of an option that takes several words."""

LONGEST_TEXT = 32_768
"""Characters of an option's text."""
LONGEST_NAME = 255
"""Bytes of the name of a file or folder, as all usual file systems have it."""
LONGEST_PATH = 4095
"""Bytes of a path, as Linux has it."""
LONGEST_NUMBER = 400
"""Characters of a number; the largest float has 309 digits."""
LONGEST_METAVAR = 36
"""Characters of what stands for a value in `--help`."""

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", WORDS: "words"}


def option(
    default: Any,
    help: str,
    *,
    minimum: int | float | None = None,
    above: int | float | None = None,
    maximum: int | float | None = None,
    below: int | float | None = None,
    free: bool = False,
    secret: bool = False,
    path: bool = False,
    lines: bool = False,
) -> Any:
    """Declare one option as a dataclass field.

    Args:
        default: The value when nobody gives one.
        help: What it means, in one line.
        minimum: The value must be at least this.
        above: The value must be greater than this.
        maximum: The value must be at most this: what nobody means, and what would take hours or all memory
            before anybody noticed.
        below: The value must be less than this.
        free: Whether a resumed run may change it, since a round's mathematics does not depend on it.
        secret: Whether its value must never be shown or written.
        path: Whether it names files or folders, alone or with commas between.
        lines: Whether it is a text that may have several lines.
    """
    facts = {
        "help": help,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "below": below,
        "free": free,
        "secret": secret,
        "path": path,
        "lines": lines,
    }
    return dataclasses.field(default=default, repr=not secret, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option as `--help`, the checks and the docs see it; see `option` for the last nine.

    Attributes:
        name: The flag without its dashes, and the YAML key.
        annotation: The Python type, for example `int | None`.
        default: The value when nobody gives one.
        group: The heading it stands under in `--help`.
        help: What it means, in one line.
    """

    name: str
    annotation: Any
    default: Any
    group: str
    help: str
    minimum: int | float | None
    above: int | float | None
    maximum: int | float | None
    below: int | float | None
    free: bool
    secret: bool
    path: bool
    lines: bool

    @property
    def _types(self) -> tuple[Any, ...]:
        is_union = get_origin(self.annotation) in (Union, UnionType)
        return get_args(self.annotation) if is_union else (self.annotation,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it may be, beside its plain types."""
        return tuple(word for kind in self._types if get_origin(kind) is Literal for word in get_args(kind))

    @property
    def nullable(self) -> bool:
        """Whether it may be left without a value."""
        return NoneType in self._types

    @property
    def plain_types(self) -> tuple[Any, ...]:
        """Its types beside `None` and choices: `int`, `float`, `str`, `bool` or `WORDS`."""
        return tuple(kind for kind in self._types if kind in _TYPE_NAMES)

    @property
    def rule(self) -> str:
        """What its value must be, in words: `a whole number of at least 1, or auto`."""
        bounds = [f"of at least {self.minimum:,}"] if self.minimum is not None else []
        bounds += [f"above {self.above:,}"] if self.above is not None else []
        bounds += [f"below {self.below:,}"] if self.below is not None else []
        bounds += [f"at most {self.maximum:,}"] if self.maximum is not None else []
        kinds = " or ".join(_TYPE_NAMES[kind] for kind in self.plain_types)
        words = (*self.choices, "none") if self.nullable else self.choices
        if not kinds:
            return "one of " + ", ".join(words)
        within = f"{kinds} {' and '.join(bounds)}".rstrip()
        return f"{within}, or {' or '.join(words)}" if words else within

    @property
    def metavar(self) -> str:
        """What stands for its value in `--help`: its kinds and choices; its name where these are many."""
        if self.annotation is bool:
            return "true|false"
        text = "PATH" if self.path and "name" not in self.name else "NAME" if self.path else "TEXT"
        kinds = {int: "INT", float: "FLOAT", str: "TOKEN" if self.secret else text, WORDS: text}
        words = "|".join([*(kinds[kind] for kind in self.plain_types), *self.choices])
        return words if len(words) <= LONGEST_METAVAR else text if self.plain_types else self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as one would type it; `none` where there is no value."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "none" if self.default in (None, ()) else str(self.default)

    def from_text(self, text: str) -> object:
        """The value that a word of the command line means; the word itself where it means none."""
        if text in self.choices:
            return text
        if self.nullable and text in ("none", "null"):
            return None
        if bool in self.plain_types and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if len(text) <= LONGEST_NUMBER:
            if int in self.plain_types and re.fullmatch(r"[+-]?[0-9]+", text):
                return int(text)
            if float in self.plain_types and re.fullmatch(
                r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?|nan|[+-]?inf", text
            ):
                try:
                    return float(text)
                except ValueError:  # 1.2.3
                    return text
        return text

    def from_file(self, value: object) -> object:
        """The value that a YAML file's value means; the value itself where it means none."""
        if isinstance(value, str):
            return self.from_text(value)
        if isinstance(value, list) and WORDS in self.plain_types:
            return tuple(value)
        if type(value) is int and float in self.plain_types and int not in self.plain_types:
            try:
                return float(value)
            except OverflowError:
                return value
        return value

    def allows(self, value: object) -> bool:
        """Whether `value` keeps the rule."""
        if value is None:
            return self.nullable
        if isinstance(value, str) and value in self.choices:
            return True
        # bool is a kind of int to Python, but not to a user; an int may stand for a float.
        if isinstance(value, bool):
            return bool in self.plain_types
        if isinstance(value, int | float):
            if type(value) not in self.plain_types and not (
                isinstance(value, int) and float in self.plain_types
            ):
                return False
            return self._within_bounds(value)
        if isinstance(value, tuple):
            return WORDS in self.plain_types and all(isinstance(w, str) and not self._flaw(w) for w in value)
        return isinstance(value, str) and str in self.plain_types and not self._flaw(value)

    def _flaw(self, text: str) -> str:
        """Why a text will do for no option, or for none that is a path; empty where it will."""
        if not is_plain(text.replace("\n", "").replace("\t", "") if self.lines else text):
            return "a control character or half of a surrogate pair stands in it"
        if not self.secret and looks_like_a_token(text):
            return "a hub token stands in it; set it as HF_TOKEN, which nobody else sees"
        if len(text) > LONGEST_TEXT:
            return f"it has {len(text):,} characters, and {LONGEST_TEXT:,} is the most"
        if self.path:
            size, longest = len(text.encode()), max(len(name.encode()) for name in re.split("[/,]", text))
            if longest > LONGEST_NAME:
                return (
                    f"a name in it has {longest:,} bytes, and {LONGEST_NAME} is the most for a file or folder"
                )
            if size > LONGEST_PATH:
                return f"it has {size:,} bytes, and {LONGEST_PATH:,} is the most for a path"
        return ""

    def _within_bounds(self, value: int | float) -> bool:
        return (
            abs(value) != float("inf")
            and value == value
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.maximum is None or value <= self.maximum)
        )

    def explain(self, value: object) -> str:
        """Say that `value` breaks the rule, what the rule is, and the nearest word that keeps it."""
        words = value if isinstance(value, tuple | list) and WORDS in self.plain_types else (value,)
        for word in words:
            if isinstance(word, str) and {str, WORDS} & {*self.plain_types} and self._flaw(word):
                return (
                    f"{self.name}: {HIDDEN if self.secret else shown(word)} will not do: {self._flaw(word)}"
                )
        if why := why_not(self.name, value):
            return f"{self.name}: {shown(value)} {why}"
        nearest = did_you_mean(
            value, self.choices, 0.3 if not self.plain_types else 0.5, values_of_others(self.choices)
        )
        return f"{self.name}: {HIDDEN if self.secret else shown(value)} is not {self.rule}{nearest}"


def names_or_pattern(text: str | None) -> list[str] | str | None:
    """Names with commas between, as a list; a regular expression, or None for the default, unchanged."""
    if text is None or _PATTERN.search(text):
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


_OPTIONS: dict[type, tuple[Option, ...]] = {}


def options(config_class: type) -> tuple[Option, ...]:
    """Return every option of a dataclass of options, in the order and under the headings of `--help`.

    A heading is the first line of the docstring of the group: the base class that declares the option, or
    the class itself when it has no groups.
    """
    # A command line, a file and a saved run are each read by all options.
    if config_class not in _OPTIONS:
        _OPTIONS[config_class] = tuple(
            Option(
                name=field.name,
                annotation=annotations[field.name],
                default=field.default,
                group=(group.__doc__ or "").splitlines()[0].rstrip("."),
                **field.metadata,
            )
            for group in _groups(config_class)
            for annotations in [get_type_hints(group)]
            for field in dataclasses.fields(group)
        )
    return _OPTIONS[config_class]


def _groups(config_class: type) -> list[type]:
    """The classes that declare options; a group may itself be made of groups."""
    bases = [base for base in config_class.__bases__ if dataclasses.is_dataclass(base)]
    return [group for base in bases for group in _groups(base)] or [config_class]
