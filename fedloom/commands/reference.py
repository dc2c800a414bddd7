"""The page of all flags, from the dataclasses that declare them:

python -m fedloom.commands.reference > docs/flags.md
"""

from fedloom.commands.table import COMMANDS, Command
from fedloom.options.declare import as_markdown

_TITLE = """# Flags

Every command and every option, as `fedloom COMMAND --help` lists them. Flags take underscores and hyphens
alike. Commands with the option `config` also read options from a YAML file, under the same names; flags win.
An unknown name or a bad value is an error that gives the rule and the nearest valid name; every number has an
upper bound that catches slips of the keyboard. A name that stands twice in a YAML file is an error too.

Set a hub token as `HF_TOKEN`: a command line, and `--token` in it, can be read by other users of the machine.

This page is made from the code: `python -m fedloom.commands.reference > docs/flags.md`.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_TITLE, *(_section(name, command) for name, command in COMMANDS.items())])


def _section(name: str, command: Command) -> str:
    first = f" A first word without dashes is `--{command.first}`." if command.first else ""
    return f"## fedloom {name}\n\n{command.summary}{first}\n\n{as_markdown(command.config_class)}"


if __name__ == "__main__":
    print(reference(), end="")
