"""From a command line, a YAML file and a run to resume, to a dataclass of options."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from fedloom.config import UserError
from fedloom.options import WORDS, Option, did_you_mean, options

RUN_CONFIG = "config.yaml"
"""Name of the file in a run's folder that holds its options."""

RUN_RECORD = "run"
"""The one key of that file that is no option: versions and device of the run, for the reader."""

C = TypeVar("C")


def help_text(config_class: type, *, prog: str, description: str) -> str:
    """Return what `--help` prints for a command: every option under its heading, with its default.

    Args:
        config_class: A dataclass whose fields are declared with `fedloom.options.option`.
        prog: The command as the user types it.
        description: What the command does, in a line.
    """
    by_name = {option.name: option for option in options(config_class)}
    return _build_parser(by_name, prog, description).format_help()


def parse(config_class: type[C], argv: Sequence[str], *, prog: str) -> C:
    """Return the options that a command line means; their values are not judged yet.

    The first of these that gives an option decides: a flag, the file of `--config` (wherever that flag
    stands), with `--resume` the config.yaml of the run, the default.

    Args:
        config_class: A dataclass whose fields are declared with `fedloom.options.option`.
        argv: The command line after the command.
        prog: The command as the user typed it, for messages.

    Raises:
        UserError: An unknown name, or a value of the wrong type.
    """
    by_name = {option.name: option for option in options(config_class)}
    flags = _read_flags(by_name, argv, prog)
    file = read_options(Path(flags["config"]), config_class) if flags.get("config") else {}
    if "config" in file:
        raise UserError(f"{flags['config']}: config cannot stand in a file of options; give it as --config")
    given = file | flags
    values = {name: option.default for name, option in by_name.items()} | given
    if values.get("resume"):
        run_config = Path(values["out_dir"]) / values["exp_name"] / RUN_CONFIG
        saved = read_options(run_config, config_class) if run_config.is_file() else {}
        # The place where the run lies now is the one that counts, not where it lay when it began.
        place = {name: values[name] for name in ("out_dir", "exp_name")}
        values |= saved | given | place
    # Several words come as a list, which a frozen config cannot keep frozen.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "token" in values:
        values["token"] = values["token"] or os.environ.get("HF_TOKEN") or None
    return config_class(**values)


def read_options(path: Path, config_class: type) -> dict[str, Any]:
    """Return the options that a YAML file gives, with their types.

    Raises:
        UserError: No such file, no mapping, an unknown name, or a value of the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give --config an existing YAML file"
        ) from None
    except yaml.MarkedYAMLError as error:
        # Not the parser's own message: it quotes the line, which may hold the token.
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(
            f"{path}{line}: is not YAML ({error.problem}); write lines of the form `option: value`"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path}: is not a text file; give --config a YAML file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold lines of the form `option: value`")
    content.pop(RUN_RECORD, None)
    by_name = {option.name: option for option in options(config_class)}
    for name, value in list(content.items()):
        if name not in by_name:
            raise UserError(f"{path}: unknown option {name}{did_you_mean(name, by_name)}")
        if value is None and not by_name[name].nullable:
            raise UserError(
                f"{path}: {name} has no value; give it {by_name[name].rule}, or leave the line out"
            )
        if value == "none" and by_name[name].nullable:
            content[name] = None
        if isinstance(value, date):  # YAML's reading of 2024-07-26, which is text to every option
            content[name] = str(value)
    try:
        return _build_parser(by_name).parse_object(content, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        raise UserError(f"{path}: {_explain(error, by_name, content)}") from None


class _HelpFormatter(argparse.HelpFormatter):
    """Names in one column, meanings in the other."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def _build_parser(
    by_name: Mapping[str, Option], prog: str = "fedloom", description: str = ""
) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--option value ...]",
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        add_help=bool(description),
        allow_abbrev=False,
    )
    groups = {option.group: parser.add_argument_group(option.group) for option in by_name.values()}
    for option in by_name.values():
        choices = f" {{{', '.join(option.choices)}}}" if option.choices and not option.plain_types else ""
        special: dict[str, Any] = {"type": option.annotation}
        if option.annotation is bool:
            special |= {"nargs": "?", "const": True}
        elif option.annotation == WORDS:
            special = {"type": str, "nargs": "+"}
        groups[option.group].add_argument(
            f"--{option.name}",
            default=option.default,
            help=f"{option.help}{choices} (default: {option.default_text})".replace("%", "%%"),
            metavar="true|false" if option.annotation is bool else "VALUE",
            **special,
        )
    return parser


def _read_flags(by_name: Mapping[str, Option], argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Return the options that stand on the command line, and no others."""
    words = _normalise(argv, by_name)
    for word in words:
        dashes, name = _split_flag(word)
        if dashes == "-" or (dashes and name not in by_name):
            nearest = did_you_mean(name, by_name).replace("mean ", "mean --")
            raise UserError(f"unknown flag {dashes}{name}{nearest} (`{prog} --help` lists all)")
    try:
        return _build_parser(by_name).parse_args(words, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        raise UserError(_explain(error, by_name, {})) from None


def _split_flag(word: str) -> tuple[str, str]:
    """Return the dashes and the name of a flag; both are empty when the word is a value, such as -1."""
    flag = re.match(r"(--?)([A-Za-z][^=]*)", word)
    return (flag.group(1), flag.group(2)) if flag else ("", "")


def _normalise(argv: Sequence[str], by_name: Mapping[str, Option]) -> list[str]:
    """Write hyphens in names as underscores, and `none` as the parser's null where that is allowed."""
    nullable = {f"--{name}" for name, option in by_name.items() if option.nullable}
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag = "--" + name[2:].replace("-", "_")
            words.append(f"{flag}=null" if flag in nullable and value == "none" else flag + equals + value)
        else:
            words.append("null" if word == "none" and words and words[-1] in nullable else word)
    return words


def _explain(error: argparse.ArgumentError, by_name: Mapping[str, Option], content: Mapping[str, Any]) -> str:
    """Turn the parser's report into value, rule and nearest valid name."""
    report = str(error)
    key = re.search(r'Parser key "(\w+)"|argument --(\w+)', report)
    name = next((group for group in key.groups() if group), None) if key else None
    if name is None or name not in by_name:
        return report.replace("unrecognized arguments:", "these belong to no option:")
    option = by_name[name]
    if name in content:
        return option.explain(content[name])
    value = re.search(r"[Gg](?:ot|iven) value: (.*)$", report, flags=re.DOTALL)
    return option.explain(value.group(1)) if value else f"--{name}: needs a value: {option.rule}"
