"""The final answer of a text that a model or a data set wrote, and when two answers agree."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from itertools import pairwise

from fedloom.data.quantities import Number, Quantity, numbers_in, plain
from fedloom.data.units import same_unit, unit_after, unit_of

# What an answer stands behind; of several the last counts.
_MARKER = re.compile(r"(?P<words>####|\banswer is\b)|\\f?boxed\s*\{", re.IGNORECASE)
_OPERATOR = re.compile(r"\s*(?:[-+*/×·÷−]|\\times|\\cdot|\\div)\s*")
_EQUALS = re.compile(r"\s*(?:=|≈)\s*")
_TOLERANCE = Decimal("1e-6")


def extract_number(text: str) -> str | None:
    r"""Returns the final number of `text` in plain form (``"1200"``, ``"-0.5"``), or None if it has none.

    It is what stands in the last ``\boxed{}``, or the first number (of a calculation the result) after the
    last ``####`` or "The (final) answer is", whichever comes last; without such a marker the last number of
    the text. Signs of currency, per cent and units are left away, fractions are divided out. A marker with
    no number behind it is an answer without a number.
    """
    number = _final(text)
    return None if number is None or number.value is None else plain(number.value)


def stated_number(text: str) -> str | None:
    """Returns the number that `text` states as its result, in plain form; None where there is a doubt.

    For texts to learn from: a solution that ends in an equation in x and y, or in two solutions, states none.
    """
    markers = list(_MARKER.finditer(text))
    if not markers:
        sentence = _sentences(text)[-1]
        result = re.split(r"=|≈|:|\b(?:is|are|equals|get|gives)\b", sentence)
        found = quantity(result[-1]) if len(result) > 1 else None
        in_doubt = re.search(r"\b(?:or|and)\b|±|\\pm|=[^=]*[,;][^=]*=", sentence)
        return None if found is None or in_doubt else plain(found.value)
    last = markers[-1]
    if last["words"]:
        found = quantity(re.sub(r"^.*[=≈]", "", _sentences(text[last.end() :])[0]))
    else:
        found = _boxed(text[last.end() :])
        if len(markers) > 1 and not markers[-2]["words"]:
            between = text[markers[-2].end() + len(_braced(text[markers[-2].end() :])) + 1 : last.start()]
            if re.fullmatch(r"[\s$.]*(?:or|and|,|;|,\s*(?:or|and))[\s$]*(?:\w+\s*=[\s$]*)?", between):
                return None  # one of several solutions
    return None if found is None else plain(found.value)


def normal_number(value: object) -> str | None:
    """Returns a data field that is a number and nothing else in plain form, or None where it is not one.

    ``"1,200"`` -> ``"1200"``, ``18.0`` -> ``"18"``, ``"$5"`` -> ``"5"``, ``"about 5"`` -> None.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if not isinstance(value, str):
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        return plain(number) if number.is_finite() else None
    text = value.strip().removeprefix("+").removesuffix("%").strip()
    numbers = list(numbers_in(text))
    if len(numbers) != 1 or (numbers[0].start, numbers[0].end) != (0, len(text)) or numbers[0].value is None:
        return None
    return plain(numbers[0].value)


def quantity(text: str) -> Quantity | None:
    """Returns the number that is the whole of `text`, with at most a unit: ``"11 days"``, ``"$5"``.

    ``"Apollo 11"``, ``"11 or 12"`` and ``"10 Downing Street"`` are none.
    """
    text = _bare(text)
    number = next(numbers_in(text), None)
    if number is None or number.start > 0 or number.value is None or re.match("0[0-9]", text):
        return None  # a number that begins with 0 is a code
    unit = unit_of(text[number.end :])
    return None if unit is None else Quantity(number.value, unit or number.currency)


def same_answer(expected: str, output: str) -> bool:
    """Tells whether an output gives the expected answer.

    It does where the words are the same but for case, white space and a full stop. Where the expected answer
    is a number with at most a unit, the output may say more: its final number must be the same and, if the
    output names a unit or the expected answer has one in words, of the same unit. An output that is the
    number alone needs none.
    """
    if _words(expected) == _words(output):
        return True
    wanted = _expected(expected)
    if wanted is None:
        return False
    markers = list(_MARKER.finditer(output))
    final = output if not markers else output[markers[-1].end() :]
    if markers and not markers[-1]["words"]:
        given = _boxed(final)
        return given is not None and _agree(wanted, given)
    given = quantity(_sentences(final)[0]) if markers else quantity(final)
    if given is not None:
        return _agree(wanted, given)
    number = _final(output)
    if number is None or number.value is None or not _equal(wanted.value, number.value):
        return False
    return unit_after(output[number.end :], wanted.unit, before=number.currency)


def _expected(text: str) -> Quantity | None:
    """The quantity that an expected answer is, or says that it comes to."""
    if _MARKER.search(text):
        number = extract_number(text)
        return None if number is None else Quantity(Decimal(number), "")
    return quantity(text)


def _agree(wanted: Quantity, given: Quantity) -> bool:
    same = not wanted.unit or not given.unit or same_unit(wanted.unit, given.unit)
    return same and _equal(wanted.value, given.value)


def _equal(a: Decimal, b: Decimal) -> bool:
    return abs(a - b) <= _TOLERANCE * min(Decimal(1), 10 * max(abs(a), abs(b)))


def _final(text: str) -> Number | None:
    markers = list(_MARKER.finditer(text))
    if not markers:
        numbers = list(numbers_in(text))
        return numbers[-1] if numbers else None
    last = markers[-1]
    if not last["words"]:
        found = _boxed(text[last.end() :])
        end = last.end() + len(_braced(text[last.end() :]))
        return None if found is None else Number(last.start(), end, found.value, found.unit)
    after = [number for number in numbers_in(text) if number.start >= last.end()]
    for place, (number, following) in enumerate(pairwise(after)):
        between = text[number.end : following.start]
        if _EQUALS.fullmatch(between):
            return following if place else number
        if not _OPERATOR.fullmatch(between):
            return None if place else number
    return after[0] if len(after) == 1 else None


def _boxed(text: str) -> Quantity | None:
    """What stands in a box whose opening brace has just been read: a number, a unit, a variable before it."""
    return quantity(re.sub("^.*=", "", _braced(text)))


def _braced(text: str) -> str:
    """Returns `text` up to the brace that closes one opened before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text


def _bare(text: str) -> str:
    """Takes away what only sets a text off: mathematics' delimiters, bold print, a colon, a full stop."""
    before = None
    while text != before:
        before, text = text, text.strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**")):
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : -len(right)]
        text = text.removesuffix(".").lstrip(":+")
    return text


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|\n+", text.strip())


def _words(text: str) -> list[str]:
    """Words without regard to case, and to how an accent is written: alone or with its letter."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return folded.strip().removesuffix(".").split()
