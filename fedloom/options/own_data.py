"""Data of the user's own, of every command that reads data: the options, and their check."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedloom.errors import UserError, shown
from fedloom.options.declare import Option, option, options
from fedloom.options.synonyms import did_you_mean

DataFormat = Literal[
    "auto",
    "language_modeling",
    "prompt_completion",
    "preference",
    "messages",
    "sharegpt",
    "alpaca",
    "question_answer",
    "text",
    "classification",
]
"""Formats of rows, by TRL's names where it has one; see `fedloom.data.formats`."""

FORMAT_HELP = (
    "format of your own data, as docs/data.md shows them; auto: by the columns, which the first lines of the "
    "output name"
)
COLUMNS_HELP = (
    "which column is which, where they have other names than the format's: question=instr,answer=out"
)

LIMIT_HELP = (
    "training rows that are read, from the first on, of the data set or of each client's own data, which may "
    "then be of any size; what is held out is among them"
)


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """Own data."""

    data_format: DataFormat = option("auto", FORMAT_HELP)
    columns: str | None = option(None, COLUMNS_HELP)
    train_limit: int | None = option(None, f"{LIMIT_HELP}; none: all", minimum=1, maximum=10**9)

    @property
    def limits(self) -> dict[str, int]:
        """How many rows of a split are read at most where there is a train_limit."""
        if self.train_limit is None:
            return {}
        val_limit = getattr(self, "val_limit", None)
        # Training has no use for a test split, of which the hub may have a large one.
        limits = {"train": self.train_limit, "test": self.train_limit}
        return limits | ({"validation": val_limit} if val_limit else {})


DPO_BETA = 0.1
"""Of `dpo_beta`, where nobody gives one: that of TRL."""
BETA_HELP = "beta of DPO's loss: the larger, the closer it holds the model to its base"


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Preferences (chosen and rejected answers)."""

    dpo_beta: float = option(
        DPO_BETA,
        BETA_HELP,
        above=0,
        maximum=1000,
    )


def column_names(columns: str | None) -> dict[str, str]:
    """Returns for each field the column that has it: ``question=instr,answer=out``.

    Raises:
        UserError: A part is of another form, or a name stands twice.
    """
    pairs = [part.partition("=") for part in columns.split(",")] if columns is not None else []
    names = {name.strip(): column.strip() for name, _, column in pairs}
    bad = next(
        (name + sign + column for name, sign, column in pairs if not name.strip() or not column.strip()), ""
    )
    if bad or len(names) < len(pairs) or len(set(names.values())) < len(pairs):
        problem = f"{shown(bad)!r} in it is no pair" if bad else "a name stands in it twice"
        raise UserError(
            f"columns: {shown(columns)} will not do: {problem}; write FIELD=COLUMN, several with commas "
            "between, as in question=instr,answer=out"
        )
    return names


def check_own_data(config: Any) -> None:
    """Judge the name of the data set, without looking for it on the hub, and the columns.

    Args:
        config: The options of a command that reads data; they have data_name or dataset_type.

    Raises:
        UserError: There can be no such data set, or `columns` is of another form.
    """
    column_names(config.columns)
    for entry in options(type(config)):
        name = getattr(config, entry.name)
        if entry.name not in ("data_name", "dataset_type") or name is None:
            continue
        if name not in entry.choices:
            _check_name(entry, name)
        elif name != "qa" and config.data_format not in (None, "auto"):
            raise UserError(
                f"data_format: {config.data_format} is said of {name}, whose format is known; leave it out, "
                f"or give your data's own path as {entry.name}"
            )


def _check_name(entry: Option, name: str) -> None:
    path = name.startswith(("/", ".", "~")) or re.search(r"[*?\[/]|\.[a-z]{2,7}(\.gz)?$", name)
    if path or Path(name).exists():
        return
    raise UserError(
        f"{entry.name}: {shown(name)} is no known data set, and no path here; choose one of "
        f"{', '.join(entry.choices)}, a path of your own data, or owner/name on the hub"
        f"{did_you_mean(name, entry.choices)}"
    )
