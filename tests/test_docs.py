"""The pages say what the program does: option table, commands, configs."""

import re
import sys
from pathlib import Path

import pytest

from fedloom.checks import check
from fedloom.cli import COMMANDS
from fedloom.config import FedConfig
from fedloom.options import as_markdown
from fedloom.parsing import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINES = re.findall(r"^(?:\$ )?fedloom (\w+) ((?:[^\n]*\\\n)*[^\n]*)$", README, re.MULTILINE)


def test_the_option_table_is_the_programs():
    table = re.search(r"<!-- options -->\n(.*?)<!-- /options -->", README, re.DOTALL)
    assert table is not None
    assert table[1] == as_markdown(FedConfig)


@pytest.mark.parametrize("command, words", COMMAND_LINES)
def test_every_command_of_the_readme_parses(command, words):
    config_class = COMMANDS[command].config_class
    COMMANDS[command].check(parse(config_class, words.replace("\\\n", " ").split(), prog="fedloom"))


def test_the_readme_shows_commands():
    assert len(COMMAND_LINES) >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses(path):
    check(parse(FedConfig, ["--config", str(path)], prog="fedloom fed"))


def test_benchmark_tables_are_those_of_the_results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from render import RESULTS, fill
    finally:
        sys.path.pop(0)
    assert "<!-- benchmark:" in README
    assert fill(README, RESULTS) == README
