"""The final number of an answer, from the text that a model or a data set wrote, and when two agree."""

from __future__ import annotations

import math
import re
from decimal import Context, Decimal

# Digits with or without thousands' commas; no sign. The look-behind skips numbers that belong to a word or
# a unit ("H2O", "cm^2"). A fraction of two whole numbers is one number.
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    # A minus counts as a sign only where nothing stands before it that could be subtracted from.
    r"(?P<sign>(?<![\w)\]}])[-\u2212])?(?:\\?[$€£¥]\s?)?(?P<inner_sign>(?<=[$€£¥])[-\u2212])?(?<![\w^])"
    rf"(?:\\[dt]?frac\{{(?P<over>[0-9]+)\}}\{{(?P<under>[0-9]+)\}}"
    rf"|(?P<a>[0-9]+)/(?P<b>[0-9]+)(?![\w/]|\.[0-9])"
    rf"|(?P<plain>{_UNSIGNED}(?:[eE][-+]?[0-9]{{1,2}}(?!\w))?))"
)
_MARKER = re.compile(r"####|\banswer is\b", re.IGNORECASE)
_TOLERANCE = Decimal("1e-6")


def extract_number(text: str) -> str | None:
    """Returns the final number of `text` in plain form (``"1200"``, ``"-0.5"``), or None if it has none.

    It is the first number after the last ``####`` or "The (final) answer is"; without such a marker, the last
    number of the text. Thousands' commas, currency signs, percent signs and units are left away, a fraction
    of whole numbers is divided out. A marker with no number behind it is an answer without a number.
    """
    markers = list(_MARKER.finditer(text))
    numbers = list(_NUMBER.finditer(text, markers[-1].end() if markers else 0))
    if not numbers:
        return None
    return _plain(_value(numbers[0] if markers else numbers[-1]))


def normal_number(value: object) -> str | None:
    """Returns a data field that is a number and nothing else in plain form, or None where it is not one.

    ``"1,200"`` -> ``"1200"``, ``18.0`` -> ``"18"``, ``"$5"`` -> ``"5"``, ``"about 5"`` -> None.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip().removeprefix("+").removesuffix("%").strip()
    match = _NUMBER.fullmatch(text)
    # repr(1e300) has an exponent that the pattern, made for prose, does not take.
    return _plain(_value(match)) if match else _plain(Decimal(value)) if isinstance(value, float) else None


def same_number(a: str | None, b: str | None) -> bool:
    """Tells whether both are numbers, equal to 1e-6: ``"18"`` and ``"18.0"`` are, None equals nothing."""
    first, second = normal_number(a), normal_number(b)
    if first is None or second is None:
        return False
    return abs(Decimal(first) - Decimal(second)) <= _TOLERANCE


def same_answer(expected: str, output: str) -> bool:
    """Tells whether an output gives the expected answer, whatever it says around it.

    Where the expected answer has a final number, that of the output must be the same; else the texts must be
    the same but for case and white space.
    """
    number = extract_number(expected)
    if number is not None:
        return same_number(number, extract_number(output))
    return expected.casefold().split() == output.casefold().split()


def _value(match: re.Match[str]) -> Decimal:
    over, under = match["over"] or match["a"], match["under"] or match["b"]
    if over is None:
        value = Decimal(match["plain"].replace(",", ""))
    elif int(under) == 0:
        value = Decimal(under)  # not a fraction after all: its last number
    else:
        value = Context(prec=15).divide(Decimal(over), Decimal(under))
    return value.copy_negate() if match["sign"] or match["inner_sign"] else value


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
