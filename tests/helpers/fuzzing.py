"""What the fuzz tests have in common: the loop over examples, and inputs that are nearly right."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fedloom.errors import UserError

LONGEST_SECONDS = 5
"""That one input may take, on a busy machine too."""

TOKEN = "hf_" + "a" * 34
NASTY_TEXT = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Co"]), max_size=5),
    st.sampled_from(
        ["", " ", "\0", "\ud83d", "\udfff\ud800", "\u2028", "\u202e", "\x1b[31m", "a\nb", "../..", "[/]",
         "[bold]", "~", "null", "none", "nan", "-inf", "1e999", "true", "!!bool x", "&a [*a]", "{}",
         "[" * 900, "9" * 5000, "2026-02-31", "0x10", "1_000", "x" * 300, "é" * 128, "/" * 5000,
         "a/" * 3000, TOKEN, "{i}", "%s", "/dev/zero", "/proc/self/mem", "cuda:999", "file:/dev/null",
         "erdos_renyi:p=1e-300", "random_regular:d=nan"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 100),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 1e-320, 1e308, 0.9999999999]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | NASTY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NASTY_TEXT, inner, max_size=4),
    max_leaves=8,
)


def fuzzed(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a function of a folder and of drawn values, which may succeed or raise `UserError`.

    Args:
        strategies: What to draw, by the names of the function's arguments.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.fuzz
        @pytest.mark.timeout(0)
        def test(tmp_path: Path, seconds: float) -> None:
            def once(**values: Any) -> None:
                try:
                    body(tmp_path, **values)
                except UserError as error:
                    assert str(error) and TOKEN not in str(error)

            ends = time.monotonic() + seconds
            while True:
                run = given(**strategies)(once)
                limits = settings(
                    max_examples=50,
                    deadline=LONGEST_SECONDS * 1000,
                    suppress_health_check=list(HealthCheck),
                    database=None,
                )
                seed(random.randrange(2**32))(limits(run))()
                if time.monotonic() > ends:
                    return

        test.__doc__ = body.__doc__
        return test

    return decorate


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which some were changed, taken out, put in or repeated."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        how_many = draw(st.integers(0, 8))
        match draw(st.sampled_from(["change", "cut", "insert", "end", "repeat"])):
            case "change":
                content[place : place + how_many] = draw(st.binary(min_size=how_many, max_size=how_many))
            case "cut":
                del content[place : place + how_many]
            case "insert":
                content[place:place] = draw(st.binary(max_size=8))
            case "end":
                del content[place:]
            case "repeat":
                content[place:place] = content[place : place + 64]
    return bytes(content)
