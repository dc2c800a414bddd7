"""Examples that no client has trained on, of those that adapters are to be judged by."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from fedloom.data.clients import load_clients, path_of
from fedloom.data.example import Example
from fedloom.data.own import open_task
from fedloom.data.sources import load_splits
from fedloom.data.tasks import TASKS
from fedloom.errors import UserError
from fedloom.options.own_data import column_names

if TYPE_CHECKING:
    from fedloom.evaluation.plan import Plan

log = logging.getLogger(__name__)


def unseen(plan: Plan, split: str, examples: Sequence[Example], token: str | None) -> list[Example]:
    """The examples without those that the adapters' runs trained on, which are told of.

    A run that held out with the same seed from the same data has trained on none. Others may have: runs on
    clients' own folders, on other data, or with another data_seed; their training data are read again.

    Args:
        plan: What is judged.
        split: The examples' split, for messages.
        examples: Of that split.
        token: Hub token.

    Raises:
        UserError: A run trained on all of them.
    """
    left = list(examples)
    for folder, run in plan.runs.items():
        try:
            trained = {_content(example) for example in _trained_on(plan, run, token)}
        except UserError as error:
            log.warning(
                "the training data of %s cannot be read, so nobody can tell whether it has seen what it is "
                "judged by (%s)",
                folder.name,
                error,
            )
            continue
        there = len(left)
        left = [example for example in left if _content(example) not in trained]
        way_out = f"--data_seed {run['data_seed']} and its own data judge by what it held out"
        if not left:
            raise UserError(f"split: {folder.name} trained on all {there} examples of {split}; {way_out}")
        if len(left) < there:
            log.warning(
                "%s trained on %d of %d examples of %s, which are left out; %s",
                folder.name,
                there - len(left),
                there,
                split,
                way_out,
            )
    return left


def _content(example: Example) -> Hashable:
    """What makes two examples the same to a model; a label may only say whose an example is."""
    return replace(example, label="")


def _trained_on(plan: Plan, run: dict[str, Any], token: str | None) -> list[Example]:
    """What a run trained on, where it may be something that is held out now."""
    name, template = run["data_name"], run["dataset_path_template"]
    if name != plan.task.name and _published(name) and _published(plan.task.name):
        return []  # two published data sets
    # With gradient priority the server's own data move the adapter beside those that clients bring.
    held_out = template is None or run["train_mode"] == "fedGradFocus"
    limits = {"train": run["train_limit"]} if run["train_limit"] is not None else {}
    held_out = held_out and (name, run["data_dir"], run["data_seed"], limits) != (
        plan.task.name,
        plan.data_dir,
        plan.data_seed,
        plan.task.limits,
    )
    if template is None and not held_out:
        return []
    clients = range(1, run["client_num"] + 1) if template is not None else ()
    task = open_task(
        name,
        data_dir=run["data_dir"],
        data_format=run["data_format"] or "auto",
        columns=column_names(run["columns"]),
        client_paths=[path_of(template, client) for client in clients],
        read_data=held_out,
        limits=limits,
        token=token,
    )
    examples = list(chain.from_iterable(load_clients(template, len(clients), task))) if clients else []
    if held_out:
        examples += load_splits(task, data_dir=run["data_dir"], seed=run["data_seed"], token=token).train
    return examples


def _published(name: str) -> bool:
    return name in TASKS and not TASKS[name].brought
