"""The options of `fedloom compare`, and the file that says what is compared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom.errors import UserError, shown
from fedloom.options.declare import option, options
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.parsing import by_own_names
from fedloom.options.synonyms import did_you_mean
from fedloom.options.yaml_file import read_yaml

KEYS = ("command", "options", "grid", "seeds", "metric", "budget")
BUDGETS = ("rounds", "megabytes", "megabytes_up", "seconds")
COMPARED = {"fed": FedConfig, "dfl": DflConfig}
MOST_RUNS = 10_000
MOST_SPENT = 10**15


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Comparison."""

    file: str | None = option(
        None,
        "YAML file: command, options, grid, seeds, metric; may stand first, without --file",
        path=True,
    )
    out_dir: str = option("comparison", "folder that holds the runs, the tables and the page", path=True)
    jobs: int = option(
        1,
        "runs that are made at the same time, each by a process with its share of threads and memory; on a "
        "GPU start CUDA's multi-process service first, or they take turns",
        minimum=1,
        maximum=1000,
    )


@dataclass(frozen=True)
class Planned:
    """A run to be made.

    Attributes:
        setting: What the grid gives it, by option.
        seed: Its seed.
        options: All that is given for it, by option; neither name nor place.
    """

    setting: Mapping[str, Any]
    seed: int
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Its setting in words: a method by its name alone."""
        method_first = sorted(self.setting.items(), key=lambda item: item[0] != "method")
        words = [str(value) if name == "method" else f"{name}={value}" for name, value in method_first]
        return " ".join(words) or "run"

    @property
    def name(self) -> str:
        """Of its folder."""
        return re.sub(r"[^\w.=+-]+", "-", f"{self.label} seed={self.seed}").strip("-.")


@dataclass(frozen=True)
class Plan:
    """What a file asks for.

    Attributes:
        command: `fed` or `dfl`.
        metric: What settings are compared by, a column of metrics.jsonl.
        runs: Every setting with every seed; the first setting is the one that others are held against.
        budget: What a run may have spent where it is compared, by one of `BUDGETS`; without one it is
            compared at its end.
    """

    command: str
    metric: str
    runs: list[Planned]
    budget: Mapping[str, float] = field(default_factory=dict)


def check(config: CompareConfig) -> None:
    """Make sure that a file is given.

    Raises:
        UserError: None is.
    """
    if config.file is None:
        raise UserError("file: none given; name a YAML file, as in fedloom compare FILE.yaml")


def read_plan(path: Path) -> Plan:
    """Read a file of this form; ``options`` and ``grid`` take the options of the command:

        command: fed
        options: {model_name: minilm, data_name: sst2}
        grid: {method: [FedAvg, SCAFFOLD], client_lr: [0.01, 0.1]}
        seeds: [1, 2, 3]
        metric: val_accuracy
        budget: {megabytes: 40}

    ``grid`` may also be a list of settings, ``[{method: DFL-LoRA}, {method: DFL-GPL, grad_eval: random}]``.
    These go before ``options``.

    Raises:
        UserError: It cannot be read, or is of another form.
    """
    content, lines = read_yaml(path, "write command, options, grid and seeds")

    def wrong(key: str, why: str) -> UserError:
        return UserError(f"{path}{f', line {lines[key]}' if key in lines else ''}: {why}")

    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold command, options, grid and seeds")
    for key in content:
        if key not in KEYS:
            raise wrong(
                key, f"unknown key {shown(str(key))}{did_you_mean(str(key), KEYS)}; one of {', '.join(KEYS)}"
            )
    command, metric = content.get("command"), content.get("metric", "val_accuracy")
    if command not in list(COMPARED):
        raise wrong("command", f"command: {shown(str(command))} is not one of {', '.join(COMPARED)}")
    if not isinstance(metric, str):
        raise wrong("metric", f"metric: {shown(str(metric))} is no name of a column, such as val_accuracy")
    fixed, grid = content.get("options") or {}, content.get("grid") or {}
    listed = grid if isinstance(grid, list) else [grid]
    for key, given in (("options", fixed), *(("grid", row) for row in listed)):
        if not isinstance(given, dict):
            raise wrong(key, f"{key}: write lines of the form `option: value`")
    for name, values in grid.items() if isinstance(grid, dict) else ():
        if not isinstance(values, list) or not values:
            raise wrong("grid", f"grid: {shown(str(name))} must have a list of values, such as [0.01, 0.1]")
        if len({str(value) for value in values}) < len(values):
            raise wrong("grid", f"grid: {shown(str(name))} has a value twice")
    settings = listed
    if isinstance(grid, dict):
        settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    names = [option.name for option in options(COMPARED[command])]

    def by_name(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        written: dict[str, str] = {}
        for name in map(str, given):
            if (other := written.setdefault(name.replace("-", "_"), name)) != name:
                raise wrong(
                    key,
                    f"{key}: {shown(name)} is another spelling of {shown(other)}, which is given too; "
                    "leave one of them out",
                )
        try:
            return by_own_names(dict(zip(written, given.values(), strict=True)), names)
        except UserError as error:
            raise wrong(key, f"{key}: {error}") from None

    common, named = by_name("options", fixed), [by_name("grid", setting) for setting in settings]
    varied = {name for setting in named for name in setting}
    for name in sorted(varied & common.keys()) if isinstance(grid, dict) else ():
        raise wrong(
            "grid",
            f"grid: {shown(name)} stands among the options too; leave one of the two out, or write the grid "
            "as a list of settings, which go before options",
        )
    seeds = content.get("seeds", [1, 2, 3])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise wrong("seeds", "seeds: must be a list of whole numbers, such as [1, 2, 3]")
    if len(set(seeds)) < len(seeds):
        raise wrong("seeds", "seeds: one stands there twice; the same run is no second sample")
    for name in ("seed", "exp_name", "out_dir", "config", "resume"):
        if name in common or name in varied:
            raise wrong("options", f"options: {name} is for compare to give; leave it out")
    if len(settings) * len(seeds) > MOST_RUNS:
        raise wrong("grid", f"grid: {len(settings) * len(seeds):,} runs are more than {MOST_RUNS:,}")
    runs = [
        Planned(setting, seed, common | given)
        for setting, given in zip(settings, named, strict=True)
        for seed in seeds
    ]
    if len({run.name for run in runs}) < len(runs):
        raise wrong("grid", "grid: two settings would have folders of one name; write their values otherwise")
    return Plan(command, metric, runs, _budget(content.get("budget", {}), wrong))


def _budget(given: Any, wrong: Callable[[str, str], UserError]) -> dict[str, float]:
    """Read the budget at which runs are compared; ``wrong`` makes an error of a key and a reason."""
    if not isinstance(given, dict) or not given.keys() <= set(BUDGETS):
        known = ", ".join(BUDGETS)
        raise wrong("budget", f"budget: {shown(str(given))} must name {known}, as in {{megabytes: 40}}")
    for name, limit in given.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= MOST_SPENT:
            raise wrong("budget", f"budget: {name}: {shown(str(limit))} must be a number above 0, to 1e15")
    return {name: float(limit) for name, limit in given.items()}
