"""The page of all flags, from the dataclasses that declare them:

python -m fedloom.commands.reference > docs/flags.md
"""

from fedloom.commands.table import COMMANDS, Command
from fedloom.options.declare import options
from fedloom.options.parsing import aliases

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
    return f"## fedloom {name}\n\n{command.summary}{first}\n\n{_as_markdown(command.config_class)}"


def _as_markdown(config_class: type) -> str:
    """The options as a Markdown table."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    group, entries = None, options(config_class)
    also = aliases([entry.name for entry in entries])
    for entry in entries:
        if entry.group != group:
            group = entry.group
            lines.append(f"| **{group}** | | |")
        choices = f" ({', '.join(f'`{word}`' for word in entry.choices)})" if entry.choices else ""
        named = " or ".join(
            f"`{name}`" for name in (entry.name, *(o for o, meant in also.items() if meant == entry.name))
        )
        lines.append(f"| {named} | `{entry.default_text}` | {entry.help}{choices} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
