"""The embedded task: word problems over the four operations, made from a seed.

A one-step problem is a sentence pattern of `phrases.ONE_STEP`. A two-step problem is a beginning, after which
somebody has a number of things, and an ending that does something with them (`phrases.BEGINNINGS`,
`phrases.ENDINGS`); any beginning goes with any ending. Into the pattern go names, things, containers, places
and numbers. The answer is a calculation per line::

    11 + 8 = 19
    19 * 3 = 57

Sums and differences stay within 60, tables within 10 x 10 (20 x 5 in a second step), divisions leave no
remainder, and no number in a question is below 2, so plurals are always right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np

from fedloom.data import phrases
from fedloom.data.example import Example, Splits
from fedloom.data.randomness import derive_seed, numpy_rng

T = TypeVar("T")

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def splits(
    seed: int, *, steps: Sequence[int] = (1, 2), train: int = 4000, validation: int = 200, test: int = 200
) -> Splits:
    """Makes the three parts of the task, each from a seed of its own, with no question in two of them.

    Args:
        seed: The seed of the run.
        steps: As for `generate`; ``(1,)`` makes the task of one-step problems.
        train: How many problems to train on.
        validation: How many to validate on.
        test: How many to judge the result by.
    """
    seeds = [derive_seed(seed, "arithmetic", part) for part in range(3)]
    tests = generate(test, seeds[2], steps)
    seen = {example.question for example in tests}
    validations = generate(validation, seeds[1], steps, without=seen)
    seen |= {example.question for example in validations}
    return Splits(generate(train, seeds[0], steps, without=seen), validations, tests)


def generate(
    count: int, seed: int, steps: Sequence[int] = (1, 2), *, without: Collection[str] = frozenset()
) -> list[Example]:
    """Makes `count` problems, no two with the same question.

    Args:
        count: How many.
        seed: What they depend on; a larger count only adds problems at the end.
        steps: The numbers of steps, each equally likely: 1, 2 or both.
        without: Questions that must not occur.

    Returns:
        Problems whose label is the operation ("add", "subtract", "multiply", "divide"), the first one where
        there are two. All four are equally likely at every step.

    Raises:
        ValueError: If `steps` holds anything but 1 and 2.
    """
    if not steps or not set(steps) <= {1, 2}:
        raise ValueError(f"steps must hold 1, 2 or both, not {tuple(steps)}")
    rng = numpy_rng(seed, "problems")
    seen = set(without)
    examples: list[Example] = []
    while len(examples) < count:
        example = _one_step(rng) if _pick(rng, steps) == 1 else _two_steps(rng)
        if example.question not in seen:
            seen.add(example.question)
            examples.append(example)
    return examples


def _one_step(rng: np.random.Generator) -> Example:
    operation = _pick(rng, tuple(SIGNS))
    a, b = _numbers(rng, operation)
    question = _fill(rng, _pick(rng, phrases.ONE_STEP[operation]), a=a, b=b)
    result = _apply(operation, a, b)
    return Example(question, _line(operation, a, b), str(result), operation)


def _two_steps(rng: np.random.Generator) -> Example:
    first, second = _pick(rng, tuple(SIGNS)), _pick(rng, tuple(SIGNS))
    a, b, c = _chain(rng, first, second)
    pattern = f"{_pick(rng, phrases.BEGINNINGS[first])} {_pick(rng, phrases.ENDINGS[second])}"
    question = _fill(rng, pattern, a=a, b=b, c=c)
    middle = _apply(first, a, b)
    answer = f"{_line(first, a, b)}\n{_line(second, middle, c)}"
    return Example(question, answer, str(_apply(second, middle, c)), first)


def _numbers(rng: np.random.Generator, operation: str) -> tuple[int, int]:
    """Draws the numbers of one step; all of them, and the result, are at least 2."""
    if operation == "add":
        a = _between(rng, 2, 48)
        return a, _between(rng, 2, 50 - a)
    if operation == "subtract":
        a = _between(rng, 4, 50)
        return a, _between(rng, 2, a - 2)
    a, b = _between(rng, 2, 10), _between(rng, 2, 10)
    return (a, b) if operation == "multiply" else (a * b, b)


def _chain(rng: np.random.Generator, first: str, second: str) -> tuple[int, int, int]:
    """Draws numbers a and b of the first step and c of the second, until the result of the first suits c."""
    while True:
        a, b = _numbers(rng, first)
        middle = _apply(first, a, b)
        if second == "add" and middle <= 58:
            return a, b, _between(rng, 2, min(50, 60 - middle))
        if second == "subtract" and 4 <= middle <= 60:
            return a, b, _between(rng, 2, middle - 2)
        if second == "multiply" and middle <= 20:
            return a, b, _between(rng, 2, 10 if middle <= 10 else 5)
        if second == "divide":
            divisors = [c for c in range(2, 11) if middle % c == 0 and 2 <= middle // c <= 10]
            if divisors:
                return a, b, _pick(rng, divisors)


def _apply(operation: str, a: int, b: int) -> int:
    return {"add": a + b, "subtract": a - b, "multiply": a * b, "divide": a // b}[operation]


def _line(operation: str, a: int, b: int) -> str:
    return f"{a} {SIGNS[operation]} {b} = {_apply(operation, a, b)}"


def _fill(rng: np.random.Generator, pattern: str, **numbers: int) -> str:
    """Fills a pattern of `phrases` with numbers, and with words that differ where their places do."""
    names, genders = zip(*_sample(rng, phrases.NAMES, 3), strict=True)
    (thing, things), (_, others) = _sample(rng, phrases.THINGS, 2)
    (_, keepsakes) = _pick(rng, phrases.KEEPSAKES)
    (box, boxes), (bag, bags) = _sample(rng, phrases.CONTAINERS, 2)
    he, him, his = phrases.PRONOUNS[genders[0]]
    words = {
        "n": names[0],
        "m": names[1],
        "o": names[2],
        "he": he,
        "He": he.capitalize(),
        "him": him,
        "his": his,
    }
    words |= {"thing": thing, "things": things, "others": others, "keepsakes": keepsakes}
    words |= {"box": box, "boxes": boxes, "bag": bag, "bags": bags}
    words |= {"food": _pick(rng, phrases.FOODS)[1], "fruit": _pick(rng, phrases.FRUITS)[1]}
    words |= {"place": _pick(rng, phrases.PLACES)}
    return pattern.format(**words, **numbers)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    """Draws a whole number, both ends included."""
    return int(rng.integers(low, high + 1))


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def _sample(rng: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    return [choices[place] for place in rng.choice(len(choices), size=count, replace=False)]
