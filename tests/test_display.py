"""Text of others in messages and tables: one line, short, data and not markup, without secrets."""

import io

import pytest
from rich.table import Table

from fedloom.errors import LONGEST_MESSAGE, UserError, one_line, plain_console, shown, without_secrets

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain, größer, 日本, a family: 👨‍👩‍👧", "plain, größer, 日本, a family: 👨‍👩‍👧"),
        ("two\nlines\x1b[31m", r"two\nlines\x1b[31m"),
        ("half \ud83d, turned \u202e", r"half \ud83d, turned \u202e"),
        ("x" * 5000, "x" * 80 + "… (5,000 characters)"),
        (None, "None"),
    ],
)
def test_a_value_as_a_message_repeats_it(value, expected):
    assert shown(value) == expected


def test_a_value_that_python_itself_cannot_write():
    assert shown(10**5000) == "a value of type int that is too large to show"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a value of type list that is too large to show"
    while deep:  # taken apart by hand: Python's own way is recursive
        deep = deep[0]


def test_a_long_message_keeps_its_beginning_and_its_fix():
    said = one_line("data_dir: '" + "x" * 100_000 + "'\nis too long; choose a shorter name")
    assert len(said) < LONGEST_MESSAGE + 10 and "\n" not in said
    assert said.startswith("data_dir: 'xxx") and said.endswith("is too long; choose a shorter name")


def test_no_message_holds_a_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    assert str(UserError(f"no model {TOKEN} at https://u:of-another-form@hub")) == (
        "no model (hidden) at https://u:(hidden)@hub"
    )
    assert without_secrets("its key is 12345678", "12345678", None) == "its key is (hidden)"
    assert without_secrets("hf_internal-testing/tiny, an a", "a") == "hf_internal-testing/tiny, an a"


def test_names_are_data_to_the_console(capsys):
    name = "[bold]a[/bold] :smile: [/] 2024"
    table = Table(name, title=name)
    table.add_row(name)
    terminal = plain_console()
    terminal.file = io.StringIO()
    terminal.width = 100
    terminal.print(table)
    terminal.print(name)
    assert terminal.file.getvalue().count(name) == 4
