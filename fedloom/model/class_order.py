"""Which output of a classifier's head is which class of a task: by the names in the model's configuration."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from fedloom.data.fields import class_key, class_of
from fedloom.errors import UserError

log = logging.getLogger(__name__)

# What transformers, or somebody in a hurry, writes where nobody has named the classes.
_NO_NAME = re.compile(r"(?:label|class)?[ _-]?\d+", re.IGNORECASE)


def class_order(config: PretrainedConfig, classes: Sequence[str], name: str) -> tuple[str, ...]:
    """The task's classes in the order of the head's outputs.

    Class numbers are the model's own affair: what is trained and predicted goes by name, so that a saved
    adapter's largest output is the class that ``id2label`` in the model's own files says.

    Args:
        config: The model's, as its files have it.
        classes: The task's, by the task's numbers.
        name: The model's, for messages.

    Returns:
        The classes in the order of ``id2label``, whose names may differ in case, hyphens and length
        (``neg``). In the task's order where the classes have no names, or names of another task; where such a
        head is a trained one, this is warned of.

    Raises:
        UserError: Some names are the task's and others are not, or ``id2label`` and ``label2id`` contradict.
    """
    named = _names(config, len(classes), name)
    trained = any("SequenceClassification" in kind for kind in config.architectures or [])
    order = _matched(named, classes) if named else None
    if order is not None:
        return order
    taken = ", ".join(f"{number} {label}" for number, label in enumerate(classes))
    if named and _known(named, classes):
        raise UserError(
            f"model {name!r}: id2label of its config.json names the classes {', '.join(named)}, of which "
            f"the task ({', '.join(classes)}) knows some and not others; give them the task's names there"
        )
    if trained and config.num_labels == len(classes):
        given = ", ".join(named) or "none (LABEL_0, ...)"
        log.warning(
            "the names of the model's classes are %s; its trained head is taken to be in the task's order, "
            "%s. Where it is not, name the classes in id2label of its config.json",
            given,
            taken,
        )
    return tuple(classes)


def name_classes(model: PreTrainedModel, order: Sequence[str]) -> None:
    """Write the names of the classes into a model's configuration, unless it names them itself.

    Args:
        model: A classifier.
        order: As `class_order` returned it.
    """
    if _matched(_written(model.config.id2label, len(order)) or (), order) != tuple(order):
        model.config.id2label = dict(enumerate(order))
        model.config.label2id = {name: number for number, name in enumerate(order)}


def _names(config: PretrainedConfig, count: int, name: str) -> tuple[str, ...]:
    """The names of the head's outputs, in their order; none where there are no names, or not for `count`."""
    outputs = _written(config.id2label, count)
    by_name = config.label2id or {}
    inputs = _written({number: name for name, number in by_name.items()}, count)
    if outputs and inputs and [class_key(one) for one in outputs] != [class_key(one) for one in inputs]:
        raise UserError(
            f"model {name!r}: id2label ({', '.join(outputs)}) and label2id ({', '.join(inputs)}) of its "
            "config.json contradict each other; mend the wrong one"
        )
    return outputs or inputs or ()


def _written(names: Mapping[Any, Any] | None, count: int) -> tuple[str, ...] | None:
    """Names by number as a tuple; None where not each number has one, or where a name is just a number."""
    listed = {str(number): str(name) for number, name in (names or {}).items()}
    if listed.keys() != {str(number) for number in range(count)}:
        return None
    ordered = tuple(listed[str(number)] for number in range(count))
    return None if any(_NO_NAME.fullmatch(name) for name in ordered) else ordered


def _matched(named: Sequence[str], classes: Sequence[str]) -> tuple[str, ...] | None:
    """For each name the class that it stands for, each once; a single unknown name is the class left over."""
    found = [class_of(name, classes) for name in named]
    left = [label for label in classes if label not in found]
    if found.count(None) == len(left) == 1 and len(classes) > 1:
        found = [left[0] if label is None else label for label in found]
    order = tuple(label for label in found if label is not None)
    return order if sorted(order) == sorted(classes) else None


def _known(named: Sequence[str], classes: Sequence[str]) -> bool:
    return any(class_of(name, classes) for name in named)
