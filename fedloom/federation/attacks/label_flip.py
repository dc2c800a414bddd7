"""Wrong labels (Fang et al., 2020, arXiv:1911.11815): the attacker trains as all do, on other classes.

    class c  →  class (c + 1) mod C

of C classes. The paper's is C − 1 − c, which is the same for two; of an odd number it leaves the one in the
middle. Nothing is altered in what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.data.example import Example
from fedloom.errors import UserError
from fedloom.federation.attacks import Attack


def label_flip() -> Attack:
    """Train on wrong labels."""
    return Attack(poison=_poison)


def _poison(examples: Sequence[Example], classes: Sequence[str], rng: np.random.Generator) -> list[Example]:
    if len(classes) < 2:
        raise UserError(
            "attack: label_flip swaps classes, and here answers are written in words of their own; choose a "
            "data set whose answers are classes, such as sst2, or another attack, such as backdoor"
        )
    following = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    return [relabelled(example, classes, following[class_of(example, classes)]) for example in examples]


def class_of(example: Example, classes: Sequence[str]) -> str:
    """An example's class: its label, or the answer, where labels are what clients are divided by."""
    return example.label if example.label in classes else example.answer


def relabelled(example: Example, classes: Sequence[str], wanted: str) -> Example:
    """An example of another class; its answer too, where that is the class's name."""
    label, answer = (wanted if text in classes else text for text in (example.label, example.answer))
    return replace(example, label=label, answer=answer)
