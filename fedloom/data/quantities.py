r"""Numbers as people, models and data sets write them, and what they are numbers of.

Read are signs, thousands (``1,200``, ``1{,}200``, ``1\,200``, ``1 200`` with a thin or hard space), fractions
(``3/4``, ``\frac{3}{4}``, ``¾``), mixed numbers (``3 1/2``, ``3\frac{1}{2}``), powers (``2^{10}``, ``10³``),
powers of ten (``1.5e3``, ``1.5 \times 10^3``, ``1.5 million``), and a sign of currency before them.

Known to be no number, though digits stand in it: a date, a time, a ratio, a version, plus or minus a number,
a root, a multiple of pi, a power or a fraction of something that is no number. A point is a decimal point,
and a comma stands between thousands: ``1.200,50`` is not read as in German.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal
from typing import NamedTuple

# Between thousands: what LaTeX and typesetters put there, and a comma; a plain space parts two numbers.
_BETWEEN = r"(?:,\\!|\{,\}|\\[,;:! ]|[,\u2009\u202f\u00a0'\u2019])"
_UNSIGNED = (
    rf"(?:(?:[0-9]{{1,3}}(?:{_BETWEEN}[0-9]{{3}})+(?![0-9])|[0-9]{{1,2}}(?:,[0-9]{{2}})+,[0-9]{{3}}(?![0-9])"
    r"|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_MINUS = "[-\u2212\u2013]"
_SIGNED = rf"\s*(?:(?:\+|{_MINUS})\s*)?{_UNSIGNED}\s*"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_EXPONENT = r"[-\u2212+]?[0-9]{1,3}"
_RAISED = (
    rf"(?:(?:\^|\*\*)(?:\{{\s*{_EXPONENT}\s*\}}|\(\s*{_EXPONENT}\s*\)|{_EXPONENT}(?!\w|\.[0-9]))"
    r"|[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)"
)
_TIMES = r"(?:\\times|\\cdot|[×·*x])"
_LARGE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_SPACE = r"(?:\\[,; ]|[ \u00a0\u2009\u202f~]){0,2}"

_FRACTION = (
    rf"\\[dtc]?frac\s*(?:\{{(?P<over>{_SIGNED})\}}|(?P<over_digit>[0-9]))"
    rf"\s*(?:\{{(?P<under>{_SIGNED})\}}|(?P<under_digit>[0-9]))"
)
_SLASHED = rf"(?P<a>{_UNSIGNED})\s?[/\u2044]\s?(?P<b>{_UNSIGNED})(?![\w/]|[.,][0-9])"
_NO_NUMBER = (
    rf"[0-9]+(?:(?:\.[0-9]+){{2,}}|(?:/[0-9]+){{2,}}|(?:-[0-9]+){{2,}}|(?::[0-9]+)+)|\\[dtc]?frac\s*(?:{_BRACED}|[0-9])\s*(?:{_BRACED}|[0-9])"
    rf"|(?:\\pm|±)\s*{_UNSIGNED}|(?:{_UNSIGNED}\s*)?(?:\\sqrt(?:\[[^\]]*\])?\s*(?:{_BRACED}|\w)|\u221a|\\pi\b|\u03c0)"
)
_ITEM = re.compile(
    # A minus is a sign where nothing stands before it from which it could subtract.
    rf"(?:(?P<sign>(?<![\w)\]}}]){_MINUS})|[=(:]\s*(?P<far_sign>{_MINUS})\s+)?"
    rf"(?:(?P<currency>\\?[$€£¥₹])\s?)?(?P<inner_sign>(?<=[$€£¥₹]){_MINUS})?"
    # Digits of a word ("H2O"), an exponent, an index, or the middle of something longer begin no number.
    r"(?<![\w^])(?<![\^_]\{)(?<![0-9][./:])"
    rf"(?:(?P<whole>[0-9]+){_SPACE}(?:{_FRACTION}|(?P<mixed_vulgar>{_VULGAR}))"
    rf"|(?P<before>[0-9]+)[ \u00a0]{{1,2}}(?P<c>[0-9]+)[/\u2044](?P<d>[0-9]+)(?![\w/]|[.,][0-9])"
    rf"|(?P<vulgar>{_VULGAR})"
    + "|"
    + _FRACTION.replace("over", "top").replace("under", "bottom")
    + rf"|(?P<none>{_NO_NUMBER})"
    rf"|{_SLASHED}"
    rf"|(?P<base>{_UNSIGNED})(?P<raised>{_RAISED})"
    rf"|(?P<plain>{_UNSIGNED})(?![0-9])(?!\.[0-9])"
    rf"(?:(?P<e>[eE][-+]?[0-9]{{1,3}})(?!\w)|\s*{_TIMES}\s*10(?P<ten>{_RAISED})"
    rf"|\s(?P<large>{'|'.join(_LARGE)})\b|(?P<power>\s?\^(?!\s*\{{?\\circ)))?)"
)


class Number(NamedTuple):
    """A number in a text and a sign of currency before it; value is None for what has digits and is none."""

    start: int
    end: int
    value: Decimal | None
    currency: str


class Quantity(NamedTuple):
    """A number, and what of: a unit in words or signs, "" where there is none."""

    value: Decimal
    unit: str


def numbers_in(text: str) -> Iterator[Number]:
    """Finds the numbers of a text, from left to right."""
    for match in _ITEM.finditer(text):
        currency = (match["currency"] or "").removeprefix("\\")
        *before, last = _values(match)
        for value in before:  # no mixed number after all, but two
            yield Number(match.start("before"), match.end("before"), value, currency)
        yield Number(match.start("c") if before else match.start(), match.end(), last, currency)


def plain(value: Decimal) -> str:
    """Writes a number with digits, a point and a sign alone."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _values(match: re.Match[str]) -> list[Decimal | None]:
    found = match.groupdict()
    values = _unsigned(found)
    if not (found["sign"] or found["far_sign"] or found["inner_sign"]) or values[0] is None:
        return values
    return [values[0].copy_negate(), *values[1:]]


def _unsigned(found: Mapping[str, str | None]) -> list[Decimal | None]:
    """The number of a match, or two where it looked like a mixed number and is none."""
    part: Decimal | None
    if found["none"] or found["power"]:
        return [None]
    if found["before"]:
        whole, over, under = (Decimal(found[name] or "") for name in ("before", "c", "d"))
        part = _divided(over, under)
        if over < under:
            return [None if part is None else whole + part]
        return [whole, under if part is None else part]
    if found["whole"]:
        over, under = (_read(found[name] or found[f"{name}_digit"] or "1") for name in ("over", "under"))
        vulgar = found["mixed_vulgar"]
        part = _vulgar(vulgar) if vulgar else _divided(over, under)
        return [None if part is None or not 0 <= part < 1 else Decimal(found["whole"]) + part]
    if found["vulgar"]:
        return [_vulgar(found["vulgar"])]
    if top := found["top"] or found["top_digit"]:
        return [_divided(_read(top), _read(found["bottom"] or found["bottom_digit"] or ""))]
    if found["a"] and found["b"]:
        over, under = _read(found["a"]), _read(found["b"])
        return [_divided(over, under) if under else under]  # 5/0 is no fraction: its last number
    if found["base"] and found["raised"]:
        return [_power(_read(found["base"]), _exponent(found["raised"]))]
    digits = found["plain"] or ""
    places = int((found["e"] or "e0")[1:]) + (_exponent(found["ten"]) if found["ten"] else 0)
    places += _LARGE.get(found["large"] or "", 0)
    return [_read(digits).scaleb(places, Context(prec=max(28, len(digits) + 1)))]


def _read(digits: str) -> Decimal:
    negative = re.match(rf"\s*{_MINUS}", digits)
    value = Decimal(re.sub(r"[^0-9.]", "", digits))
    return value.copy_negate() if negative else value


def _divided(over: Decimal, under: Decimal) -> Decimal | None:
    return Context(prec=15).divide(over, under) if under else None


def _vulgar(character: str) -> Decimal:
    return Decimal(repr(round(unicodedata.numeric(character), 15)))


def _exponent(raised: str) -> int:
    return int(re.sub(r"[\s^*{}()]", "", raised.translate(_SUPERSCRIPTS)).replace("\u2212", "-"))


def _power(base: Decimal, exponent: int) -> Decimal | None:
    digits = len(base.as_tuple().digits) * abs(exponent)
    if digits > 1000 or (base == 0 and exponent <= 0):
        return None
    return Context(prec=15 if exponent < 0 else digits + 1).power(base, exponent)
