"""Runs that differ in nothing but their seed are shown as one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from os.path import commonpath

from fedloom.runs.record import RunRecord

IGNORED = frozenset({"exp_name", "out_dir", "seed", "wave_tokens", "report_to", "log_path"})
"""Options that may differ between runs of one group: names, places, the seed, and what changes only speed."""


@dataclass(frozen=True)
class Group:
    """Runs with the same options and each a seed of its own; mostly a single run.

    Attributes:
        label: What the page calls it.
        runs: In the order they were given.
    """

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run that speaks for what all have in common."""
        return self.runs[0]

    @property
    def finished(self) -> bool:
        """Whether all of its runs came to their end."""
        return all(run.finished for run in self.runs)

    @property
    def seeds(self) -> list[str]:
        """The seeds of its runs."""
        return [str(run.seed) for run in self.runs]


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Join the runs that differ only in their seed, in the order of each group's first run.

    Runs with the same options and the same seed are repetitions; they stay apart, and so do all runs that
    have the same options as they.
    """
    alike: dict[str, list[RunRecord]] = {}
    for run in runs:
        alike.setdefault(_without_seed(run), []).append(run)
    parts: list[tuple[RunRecord, ...]] = []
    for joined in alike.values():
        repeated = len({run.seed for run in joined}) < len(joined)
        parts += [(run,) for run in joined] if repeated else [tuple(joined)]
    parts.sort(key=lambda part: runs.index(part[0]))
    labels = _distinct([_label(part) for part in parts], parts)
    return [Group(label, part) for label, part in zip(labels, parts, strict=True)]


def _without_seed(run: RunRecord) -> str:
    options = {name: value for name, value in run.options.items() if name not in IGNORED}
    return json.dumps([run.command, options], sort_keys=True, default=str)


def _label(runs: Sequence[RunRecord]) -> str:
    """The name, or what the names of all seeds begin with."""
    if len(runs) == 1:
        return runs[0].name
    letters = zip(*(run.name for run in runs), strict=False)
    shared = "".join(at[0] for at in takewhile(lambda at: len(set(at)) == 1, letters))
    return re.sub(r"[-_. ]*(seed|s)?[-_. =]*$", "", shared) or f"{runs[0].name} and {len(runs) - 1} more"


def _distinct(labels: list[str], parts: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Say where a run lies, behind what all folders begin with, when its name alone is not enough."""
    common = Counter(labels)
    folders = [part[0].folder.resolve() for part in parts]
    above = commonpath(folder.parent for folder in folders)
    return [
        label if common[label] == 1 else f"{label} ({part[0].folder.resolve().relative_to(above)})"
        for label, part in zip(labels, parts, strict=True)
    ]
