import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data import phrases
from fedloom.data.answers import extract_number
from fedloom.data.arithmetic import SIGNS, generate, splits

CALCULATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def lines_of(example):
    """The calculations of an answer as (a, sign, b, result)."""
    lines = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line) for line in example.answer.split("\n")]
    assert all(lines), example.answer
    return [(int(line[1]), line[2], int(line[3]), int(line[4])) for line in lines]


def skeleton(question):
    """The question with numbers, names, things, containers and places blanked."""
    pools = {
        "PLACE": phrases.PLACES,
        "THING": [word for pair in phrases.THINGS for word in pair],
        "BOX": [word for pair in phrases.CONTAINERS for word in pair],
        "NAME": [name for name, _ in phrases.NAMES],
        "PERSON": ["she", "her", "he", "him", "his"],
        "N": [r"\d+"],
    }
    for blank, words in pools.items():
        longest_first = "|".join(sorted(words, key=len, reverse=True))
        question = re.sub(rf"\b(?:{longest_first})\b", blank, question)
    return question


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_every_problem_is_right_and_answerable_from_its_text(seed):
    for example in generate(40, seed):
        lines = lines_of(example)
        for a, sign, b, result in lines:
            assert CALCULATIONS[sign](a, b) == result >= 2
            assert result <= 100
        for (*_, middle), (a, *_) in pairwise(lines):
            assert a == middle, "the second step goes on from the first"
        # The text gives the numbers that the calculation needs, each once, and no other.
        needed = [lines[0][0], *(b for _, _, b, _ in lines)]
        assert Counter(map(int, re.findall(r"\d+", example.question))) == Counter(needed)
        assert example.final == str(lines[-1][3]) == extract_number(example.answer)
        assert SIGNS[example.label] == lines[0][1]


def test_questions_read_like_english():
    for example in generate(1500, 5):
        question = example.question
        assert question.endswith("?") and question.count("?") == 1
        assert not re.search(r"[{}]|  |\b1\b|\.\.", question)
        assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.?]) ", question)), question


def test_hundreds_of_phrasings():
    skeletons = Counter(skeleton(example.question) for example in generate(3000, 1))
    assert len(skeletons) >= 350
    assert not any(re.search(r"\d", text) for text in skeletons)
    one_step = Counter(skeleton(example.question) for example in generate(1000, 1, steps=(1,)))
    assert len(one_step) >= 60


def test_operations_and_steps_are_equally_likely():
    examples = generate(2000, 3)
    labels = Counter(example.label for example in examples)
    assert set(labels) == {"add", "subtract", "multiply", "divide"}
    assert all(0.2 < count / len(examples) < 0.3 for count in labels.values())
    two_steps = sum(len(lines_of(example)) == 2 for example in examples)
    assert 0.45 < two_steps / len(examples) < 0.55
    seconds = Counter(lines_of(example)[1][1] for example in examples if "\n" in example.answer)
    assert all(0.2 < count / two_steps < 0.3 for count in seconds.values())


def test_one_kind_of_problem_alone():
    assert {len(lines_of(example)) for example in generate(100, 0, steps=(1,))} == {1}
    assert {len(lines_of(example)) for example in generate(100, 0, steps=(2,))} == {2}
    with pytest.raises(ValueError, match="steps"):
        generate(1, 0, steps=(3,))


def test_a_seed_makes_its_problems_and_more_of_them_only_add():
    assert generate(30, 7) == generate(50, 7)[:30]
    assert generate(30, 7) != generate(30, 8)


def test_no_question_occurs_twice():
    parts = splits(3407)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [4000, 200, 200]
    questions = [example.question for part in (parts.train, parts.validation, parts.test) for example in part]
    assert len(set(questions)) == 4400
    small = splits(3407, train=10)
    assert small.train == parts.train[:10] and small.test == parts.test
    assert splits(3408, train=10).test != parts.test


def test_names_do_not_meet_themselves():
    names = {name for name, _ in phrases.NAMES}
    assert len(names) == len(phrases.NAMES)
    for example in generate(500, 2):
        assert not re.search(r"\b(\w+) and \1\b", example.question)


def test_small_splits_for_a_quick_try():
    parts = splits(1, steps=(1,), train=8, validation=4, test=4)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (8, 4, 4)
    assert all("\n" not in example.answer for example in parts.train)
