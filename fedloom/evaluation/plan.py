"""What `fedloom eval` is to judge, and by what: from the options, the adapters' files and their runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data.own import open_task
from fedloom.data.tasks import TASKS, Task
from fedloom.data.templates import instruction_of
from fedloom.errors import UserError
from fedloom.evaluation.chosen import named_base
from fedloom.evaluation.saved_adapters import (
    SavedAdapter,
    find_adapters,
    options_of_folder,
    options_of_run,
    read_config,
)
from fedloom.model.base import base_name, configuration, is_encoder
from fedloom.model.class_order import class_order
from fedloom.model.files import check_model_name
from fedloom.model.source import locate
from fedloom.options.check_fed import check_prompts
from fedloom.options.evaluation import EvalConfig
from fedloom.options.own_data import DPO_BETA, column_names
from fedloom.options.run import DATA_SEED, PROMPT_DATE, FormatName
from fedloom.runs.record import EVAL_FOLDER

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Plan:
    """What to judge.

    Attributes:
        adapters: The adapters with their configurations; none: the model without an adapter.
        model_name: The base.
        task: The data set.
        classes: The task's classes in the order of the model's head, where it predicts classes; none where it
            writes answers.
        data_dir: Local data.
        data_seed: Decides what is held out, where something must be.
        instruction: What a model is told in front of every question; "" for nothing.
        prompt_format, prompt_date: How questions are put to the model; see `fedloom.data.templates`.
        dpo_beta: Of the rewards of preferences.
        max_length: To which a text to classify is cut, in tokens.
        dtype: Of the base: as given, or as the runs were told, where they were told one.
        output: Folder for the results.
        taken: What was taken from a run, for people; "" where nothing was.
        runs: The options of the adapters' runs, by their folders; see `options_of_run`.
    """

    adapters: list[tuple[SavedAdapter, PeftConfig]]
    model_name: str
    task: Task
    classes: tuple[str, ...]
    data_dir: str | None
    data_seed: int
    instruction: str
    prompt_format: FormatName
    prompt_date: str
    dpo_beta: float
    max_length: int
    dtype: str
    output: Path
    taken: str
    runs: dict[Path, dict[str, Any]]

    @property
    def classify(self) -> bool:
        """Whether the model predicts classes; else it writes answers."""
        return bool(self.classes)


def make_plan(config: EvalConfig) -> Plan:
    """Find out what is to be judged.

    Raises:
        UserError: No such adapter, no model or task to be known, or they do not go together.
    """
    found = find_adapters(config.adapter_paths, all_checkpoints=config.all_checkpoints)
    adapters = [(adapter, read_config(adapter.folder)) for adapter in found]
    runs = {adapter.run: options_of_run(adapter.run) for adapter in found if adapter.run is not None}
    taken: dict[str, Any] = {}

    def choose(name: str, given: Any, among: Sequence[dict[str, Any]]) -> Any:
        values = {run[name] for run in among if run[name] is not None}
        if given is not None or not values:
            return given
        if len(values) > 1:
            raise UserError(
                f"{name}: the adapters' runs have {' and '.join(map(str, sorted(values)))}; give --{name}"
            )
        (taken[name],) = values
        return taken[name]

    of_runs = [*runs.values(), *(options_of_folder(each.folder) for each in found if each.run is None)]
    data_name = _known("data_name", choose("data_name", config.task, of_runs))
    same_task = [run for run in of_runs if run["data_name"] == data_name]
    model_name = _known("model_name", choose("model_name", config.model, of_runs) or named_base(adapters))
    data_dir = choose("data_dir", config.data_dir, same_task)
    data_format = choose("data_format", config.data_format, same_task) or "auto"
    columns = choose("columns", config.columns, same_task)
    train_limit = choose("train_limit", config.train_limit, same_task)
    data_seed = choose("data_seed", config.data_seed, of_runs)
    prompt_format: Any = choose("prompt_format", config.prompt_format, of_runs) or "auto"
    prompt_date = str(choose("prompt_date", config.prompt_date, of_runs) or PROMPT_DATE)
    check_prompts(prompt_format, prompt_date)
    given = config.system_prompt if config.system_prompt != "auto" else None
    same_prompts = [run for run in of_runs if run["data_name"] == data_name or _has_prompt_of_its_own(run)]
    system_prompt = choose("system_prompt", given, same_prompts) or "auto"
    check_model_name(model_name, config.token)
    task = open_task(
        data_name,
        data_dir=data_dir,
        data_format=data_format,
        columns=column_names(columns),
        limits={"train": train_limit} if train_limit is not None else {},
        token=config.token,
    )
    compares = task.data_format == "preference"
    dpo_beta = (choose("dpo_beta", config.dpo_beta, same_task) if compares else None) or DPO_BETA
    classify = task.num_labels > 0 and _predicts(config, task, model_name, [peft for _, peft in adapters])
    classes: tuple[str, ...] = ()
    if classify:
        model_config = configuration(
            model_name, token=config.token, trust_remote_code=config.trust_remote_code
        )
        classes = class_order(model_config, task.label_names, model_name)
    _check_adapters(adapters, task, classify, {locate(model_name).name, base_name(model_name)})
    (run, *others) = runs or [None]
    # What is fast is measured, and may be another dtype than the run's in another process.
    dtypes = {options["dtype"] for options in runs.values()} if config.dtype == "auto" else {config.dtype}
    return Plan(
        adapters=adapters,
        model_name=model_name,
        task=task,
        classes=classes,
        data_dir=data_dir,
        data_seed=DATA_SEED if data_seed is None else data_seed,
        instruction=instruction_of(task.instruction, system_prompt),
        prompt_format=prompt_format,
        prompt_date=prompt_date,
        dpo_beta=dpo_beta,
        max_length=max((run["max_length"] or 0 for run in same_task), default=0) or DEFAULT_MAX_LENGTH,
        dtype=(dtypes.pop() or "auto") if len(dtypes) == 1 else "auto",
        output=_output(config, None if others else run),
        taken=", ".join(f"{name} {value}" for name, value in taken.items()),
        runs=runs,
    )


def _predicts(config: EvalConfig, task: Task, model_name: str, adapters: Sequence[PeftConfig]) -> bool:
    """Whether a model predicts the classes of a task that has some; else it writes their names.

    A causal model does the one or the other with a user's own labelled texts, as its adapters were trained.
    """
    if task.own and adapters:
        return any(adapter.task_type == "SEQ_CLS" for adapter in adapters)
    if task.embedded is None and not task.own:
        return True
    return is_encoder(model_name, token=config.token, trust_remote_code=config.trust_remote_code)


def _has_prompt_of_its_own(run: dict[str, Any]) -> bool:
    """Whether a run was told what its user says, on any data; else what its data set says, on that alone."""
    known = TASKS.get(run["data_name"])
    return run["system_prompt"] not in (None, "auto", "none", known.instruction if known else "")


def _known(name: str, value: str | None) -> str:
    if value is None:
        raise UserError(f"{name}: no adapter given is of a run that says which; give --{name}")
    return value


def _output(config: EvalConfig, run: Path | None) -> Path:
    if config.output_path is not None:
        return Path(config.output_path)
    return Path(EVAL_FOLDER) if run is None else run / EVAL_FOLDER


def _check_adapters(
    adapters: Sequence[tuple[SavedAdapter, PeftConfig]], task: Task, classify: bool, base: set[str]
) -> None:
    """Adapters do what the task needs; one of another base is warned of: names may differ for one model."""
    needed, does = ("SEQ_CLS", "classified") if classify else ("CAUSAL_LM", "answered in words")
    for adapter, config in adapters:
        if config.task_type is not None and config.task_type != needed:
            raise UserError(
                f"adapter: {adapter.folder} is for {config.task_type} models, but {task.name} is {does} "
                f"here, which needs {needed}; choose another task or adapter"
            )
        if config.base_model_name_or_path not in {None, "", *base}:
            log.warning(
                "%s was trained on %s, and is judged on %s",
                adapter.name,
                config.base_model_name_or_path,
                " or ".join(sorted(base)),
            )
