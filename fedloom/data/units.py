r"""What a number is a number of: ``days``, ``km/h``, ``\text{ cm}^2``, ``%``."""

from __future__ import annotations

import re

_SIGNS = ("%", "°", "$", "€", "£", "¥", "₹")
# A word with letters, such as "days" or "m/s"; what is raised belongs to it.
_WORD = r"[^\W\d_]+(?:[/·*][^\W\d_]+)*(?:\^?\{?[-\u2212]?[0-9]\}?|[²³])?"
_UNIT = re.compile(rf"(?:%|°(?:\s?[CFK]\b)?|[$€£¥₹]|{_WORD}(?:[ -]{_WORD}){{0,2}})")
# These join numbers, or stand for one.
_NO_UNITS = re.compile(
    r"\b(?:and|or|to|plus|minus|times|over|but|not|by|of|at|on|for|from|with|is|[abiknxyz])\b", re.IGNORECASE
)
_CAPITALISED = ("Hz", "Pa", "Wh", "Ah", "Nm", "Celsius", "Fahrenheit", "Kelvin")
_RAISED = str.maketrans({"²": "2", "³": "3", "^": None, "{": None, "}": None})
_IN_WORDS = ((r"\bper cent\b", "percent"), (r"°\s?c\b", "° celsius"), (r"°\s?f\b", "° fahrenheit"))
_OTHER_NAMES = {
    other: name
    for name, others in {
        "percent": "% percentage pct",
        "degree": "° deg",
        "dollar": "$ usd",
        "euro": "€ eur",
        "pound": "£ gbp lb lbs",
        "yen": "¥ jpy",
        "rupee": "₹ inr",
        "kilometer": "km kms kilometre",
        "meter": "m metre",
        "centimeter": "cm cms centimetre",
        "millimeter": "mm millimetre",
        "mile": "mi",
        "foot": "ft feet",
        "inch": "in inches",
        "kilogram": "kg kgs kilo",
        "gram": "g",
        "ounce": "oz",
        "liter": "l litre",
        "milliliter": "ml millilitre",
        "hour": "h hr hrs",
        "minute": "min mins",
        "second": "s sec secs",
    }.items()
    for other in others.split()
}


def unit_of(text: str) -> str | None:
    """Returns the unit that follows a number, "" where nothing does, None if it is something else."""
    text = _unwrapped(text)
    if not text:
        return ""
    first = re.split(r"[ -]", text)[0]
    return None if not _UNIT.fullmatch(text) or _NO_UNITS.search(text) or _is_name(first) else text


def unit_after(text: str, unit: str, *, before: str) -> bool:
    """Tells whether what stands around a number in a sentence goes with a unit.

    Args:
        text: What follows the number.
        unit: The unit; a word must be there, a sign may be left away, and "" goes with everything.
        before: A sign of currency before the number, or "".
    """
    if not unit:
        return True
    following = _unwrapped(text)
    sign = before or next((sign for sign in _SIGNS if following.startswith(sign)), "")
    if sign:
        return same_unit(unit, sign)
    words, length = following.split(), len(unit.split())
    near = (" ".join(words[place : place + length]) for place in range(3))  # also: 11 long days
    return unit in _SIGNS or any(same_unit(unit, some.rstrip(".,;:!?)*$")) for some in near)


def same_unit(a: str, b: str) -> bool:
    """Tells whether two units are one, whatever their number and their name: ``hours`` and ``h``."""
    return _normal(a) == _normal(b)


def _normal(unit: str) -> list[str]:
    unit = unit.casefold().translate(_RAISED)
    for written, name in _IN_WORDS:
        unit = re.sub(written, name, unit)
    words = unit.split()
    singular = [re.sub(r"(?<=[^s])s$", "", word) if len(word) > 2 else word for word in words]
    return [
        _OTHER_NAMES.get(word, _OTHER_NAMES.get(one, one)) for word, one in zip(words, singular, strict=True)
    ]


def _unwrapped(text: str) -> str:
    r"""Takes a unit out of what LaTeX puts around it: ``\,\text{ cm}^2`` -> ``cm^2``."""
    text = re.sub(r"\\(?:text|textrm|textbf|mathrm|mathbf|mbox|rm)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "°", text).replace(r"\%", "%")
    text = re.sub(r"\\[,;:! ]|[~$\s]", " ", text)
    return re.sub(r" +", " ", re.sub(r" *([/^]) *", r"\1", text)).strip()


def _is_name(word: str) -> bool:
    """Units are not capitalised, names are: 10 Downing Street, 101 Dalmatians."""
    return len(word) > 1 and word[0].isupper() and word[1:].islower() and word not in _CAPITALISED
