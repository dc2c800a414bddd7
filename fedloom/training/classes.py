"""Whether a run trains a classifier, and what the outputs of its head are."""

from __future__ import annotations

from fedloom.data.tasks import TASKS, Task
from fedloom.errors import UserError
from fedloom.model.base import configuration, encodes
from fedloom.model.class_order import class_order


def classes_of_head(
    task: Task, model_name: str, *, token: str | None, trust_remote_code: bool, own_by_head: bool
) -> tuple[str, ...]:
    """The classes that a model's head is trained to tell apart, in the order of its outputs.

    A model that reads and cannot write classifies whatever has classes; one that writes does so for the tasks
    of sentence classification, and writes its answers to everything else.

    Args:
        task: What is learned.
        model_name: The model, of which the configuration alone is read.
        token: Hub token.
        trust_remote_code: Whether its own code may run.
        own_by_head: Whether a model that can write classifies a user's own labelled texts too; else it learns
            to write their labels.

    Returns:
        The classes; none where answers are written.

    Raises:
        UserError: The configuration cannot be had, or names other classes.
    """
    if not task.num_labels:
        return ()
    known = task.name in TASKS and task.embedded is None and not task.own
    config = configuration(model_name, token=token, trust_remote_code=trust_remote_code)
    if not (known or encodes(config) or (own_by_head and task.own)):
        return ()
    return class_order(config, task.label_names, model_name)


def check_written(classes: tuple[str, ...], eval_generate_every: int) -> None:
    """Make sure that a model that is to write answers does so.

    Raises:
        UserError: It classifies.
    """
    if classes and eval_generate_every:
        raise UserError(
            f"eval_generate_every: {eval_generate_every}, but this model classifies and writes no answers; "
            "leave it out, or choose a causal language model and a task that is answered in words"
        )
