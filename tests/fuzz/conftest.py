"""`make fuzz`: random and damaged input, against everything that reads what others wrote.

Nothing but success and `UserError` may come of any input, and neither may take more than a moment. The tests
here run only where FUZZ_SECONDS is set, to the seconds that they may take altogether; each has its share of
them. To add one, write a function of a folder and drawn values and give it `@fuzzed(...)`, see test_yaml.py.
"""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("FUZZ_SECONDS") else ["test_*.py"]


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """The share of one test."""
    return float(os.environ["FUZZ_SECONDS"]) / max(1, request.session.testscollected)
