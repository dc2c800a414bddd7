"""Wrong formulas of public implementations: fedloom's are right, and the page says how far apart they are."""

import importlib

import pytest
from places import ROOT

PAGE = ROOT / "docs" / "methods.md"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("faults")


def test_fedloom_has_the_right_formula_and_every_fault_shows(faults):
    for case in faults.CASES:
        found, right, wrong = case.tensors()
        assert faults.apart(found, right) < 1e-10, case.fault
        assert faults.apart(wrong, right) > 5e-3, case.fault


def test_the_page_has_the_table_as_it_comes_out(faults):
    page = PAGE.read_text(encoding="utf-8")
    assert faults.CASES[0].fault in page
    assert faults.filled(page) == page
