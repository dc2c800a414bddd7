"""Examples that no client has trained on, of those that adapters are to be judged by."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from fedloom.data.clients import load_clients
from fedloom.data.example import Example
from fedloom.data.sources import load_splits
from fedloom.errors import UserError

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
    if run["data_name"] != plan.task.name:
        return []
    examples: list[Example] = []
    own, data_set = run["dataset_path_template"], (run["data_dir"], run["data_seed"])
    if own is not None:
        examples += chain.from_iterable(load_clients(own, run["client_num"], plan.task))
    if (own is None or run["train_mode"] == "fedGradFocus") and data_set != (plan.data_dir, plan.data_seed):
        examples += load_splits(plan.task, data_dir=data_set[0], seed=data_set[1], token=token).train
    return examples
