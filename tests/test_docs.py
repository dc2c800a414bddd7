"""The pages say what the program does: option table, commands, configs."""

import re
import sys
from pathlib import Path

import pytest

from fedloom.cli import COMMANDS, read_config
from fedloom.options import as_markdown

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
README = PAGES["README.md"]
COMMAND_LINE = re.compile(r"^(?:\$ )?fedloom (\w+) ((?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
COMMAND_LINES = [found for page in PAGES.values() for found in COMMAND_LINE.findall(page)]
OPTION_TABLES = [
    (name, found[1], found[2])
    for name, page in PAGES.items()
    for found in re.finditer(r"<!-- options (\w+) -->\n(.*?)<!-- /options -->", page, re.DOTALL)
]


def test_every_run_has_its_option_table():
    assert {command for _, command, _ in OPTION_TABLES} >= {"fed", "dfl"}


@pytest.mark.parametrize(("page", "command", "table"), OPTION_TABLES)
def test_an_option_table_is_the_programs(page, command, table):
    assert table == as_markdown(COMMANDS[command].config_class)


@pytest.mark.parametrize("command, words", COMMAND_LINES)
def test_every_command_of_the_pages_parses(command, words):
    read_config(COMMANDS[command], words.replace("\\\n", " ").split(), prog="fedloom")


def test_the_readme_shows_commands():
    assert len(COMMAND_LINE.findall(README)) >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses_with_the_command_that_it_names(path):
    named = re.search(r"fedloom (\w+) --config configs/([\w.-]+)", path.read_text(encoding="utf-8"))
    assert named is not None and named[2] == path.name
    read_config(COMMANDS[named[1]], ["--config", str(path)], prog="fedloom")


@pytest.mark.parametrize("page", PAGES)
def test_benchmark_tables_are_those_of_the_results(page):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from render import RESULTS, fill
    finally:
        sys.path.pop(0)
    assert fill(PAGES[page], RESULTS) == PAGES[page]
