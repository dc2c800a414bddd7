"""From a command line, a YAML file and a run to resume, to a dataclass of options.

One vocabulary: every command takes the documented names of both original systems. FedGPL (`fedloom fed`) and
DFL-LoRA (`fedloom dfl`) name the same things differently. A command has one of two names, and takes the other
for it, as a flag, in YAML and from Python. Defaults stay each command's own.
"""

import argparse
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fedloom.errors import UserError, shown
from fedloom.options.declare import WORDS, Option, options
from fedloom.options.help import HelpFormatter
from fedloom.options.parts import load_plugins
from fedloom.options.synonyms import did_you_mean, of_others
from fedloom.options.yaml_file import read_yaml

RUN_CONFIG = "config.yaml"
"""Name of the file in a run's folder that holds its options."""

RUN_RECORD = "run"
"""The one key of that file that is no option: versions and device of the run, for the reader."""

SAME = (
    ("client_num", "num_clients"),
    ("max_steps", "num_rounds"),
    ("model_name", "model_checkpoint"),
    ("data_name", "dataset_type"),
    ("val_steps", "eval_every"),
    ("client_batch_per_step", "local_steps"),
    ("client_epoch", "local_epochs"),
    ("client_lr", "lr"),
    ("system_prompt", "instruction"),
    ("method", "preset"),
)
"""Names of one thing; where a command has both, they are two (`lr` of `fedloom fed` is the server's)."""

RENAMED = (("data_seed", "seed"),)
"""An option, and a name that stands for it in a command that trains nothing, and so has no such option."""

C = TypeVar("C")


def help_text(config_class: type, *, prog: str, description: str, example: str = "") -> str:
    """Return what `--help` prints for a command: every option under its heading, with its default.

    Args:
        config_class: A dataclass whose fields are declared with `fedloom.options.declare.option`.
        prog: The command as the user types it.
        description: What the command does, in a line.
        example: Commands to copy.
    """
    by_name = {option.name: option for option in options(config_class)}
    text = build_parser(by_name, prog, description).format_help()
    return f"{text}\nExample:\n{example}" if example else text


def parse(config_class: type[C], argv: Sequence[str], *, prog: str) -> C:
    """Return the options that a command line means; what they mean together is not judged yet.

    Arguments and errors are those of `given_options`.
    """
    # Only what is given: a default must not win over what a method sets.
    return config_class(**given_options(config_class, argv, prog=prog))


def given_options(config_class: type, argv: Sequence[str], *, prog: str) -> dict[str, Any]:
    """Return the options that a command line gives, by their own names.

    The first of these that gives an option decides: a flag, the file of `--config` (wherever that flag
    stands), with `--resume` the config.yaml of the run, the default.

    Args:
        config_class: A dataclass whose fields are declared with `fedloom.options.declare.option`.
        argv: The command line after the command.
        prog: The command as the user typed it, for messages.

    Raises:
        UserError: An unknown name, or a value that breaks its rule.
    """
    by_name = {option.name: option for option in options(config_class)}
    flags = _read_flags(by_name, argv, prog)
    file = read_options(Path(flags["config"]), config_class) if flags.get("config") else {}
    if "config" in file:
        raise UserError(f"{flags['config']}: config cannot stand in a file of options; give it as --config")
    given = file | flags
    if given.get("resume"):
        # The place where the run lies now is the one that counts, not where it lay when it began.
        place = {name: given.get(name, by_name[name].default) for name in ("out_dir", "exp_name")}
        run_config = Path(place["out_dir"]) / place["exp_name"] / RUN_CONFIG
        saved = read_options(run_config, config_class) if run_config.is_file() else {}
        given = saved | given | place
    if "token" in by_name:
        given["token"] = given.get("token") or os.environ.get("HF_TOKEN") or None
    if "plugin" in by_name:
        load_plugins(given.get("plugin"))
    return given


def read_options(path: Path, config_class: type) -> dict[str, Any]:
    """Return the options that a YAML file gives, with their types.

    Raises:
        UserError: No such file, no mapping, an unknown name, or a value that breaks its rule; the message has
            the line.
    """
    content, lines = read_yaml(path, "write lines of the form `option: value`")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold lines of the form `option: value`")
    by_name = {option.name: option for option in options(config_class)}
    also = aliases(by_name)
    found = {}
    for written, value in content.items():
        if written == RUN_RECORD:
            continue
        name, where = also.get(written, written), f"{path}, line {lines[written]}"
        if name in found:
            raise UserError(
                f"{where}: {written} is another name of an option that the file has given already"
            )
        if name not in by_name:
            raise UserError(f"{where}: unknown option {shown(name)}{_meant(str(name), by_name)}")
        option = by_name[name]
        if value is None and not option.nullable:
            raise UserError(f"{where}: {name} has no value; give it {option.rule}, or leave the line out")
        found[name] = option.from_file(value)
        if not option.allows(found[name]):
            raise UserError(f"{where}: {option.explain(value)}")
    if RUN_RECORD in content:  # a run of before there was an option has what was done then
        for newer, as_it_was in (("data_seed", "seed"), ("eval_peers", "num_clients")):
            if newer in by_name and as_it_was in found:
                found.setdefault(newer, found[as_it_was])
    return found


class _Parser(argparse.ArgumentParser):
    """argparse takes the words apart; what a value means, and whether it will do, is the option's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def build_parser(by_name: Mapping[str, Option], prog: str = "fedloom", description: str = "") -> _Parser:
    """A parser of options as words; without a description it has no `--help`."""
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--option value ...]",
        description=description,
        formatter_class=HelpFormatter,
        add_help=bool(description),
        allow_abbrev=False,
    )
    vars(parser)["color"] = False  # of Python 3.14 on; `fedloom.options.help` has the colours
    groups = {option.group: parser.add_argument_group(option.group) for option in by_name.values()}
    also = aliases(by_name)
    for option in by_name.values():
        metavar = option.metavar
        choices = (
            f" {{{', '.join(option.choices)}}}" if not set(option.choices) <= {*metavar.split("|")} else ""
        )
        words: dict[str, Any] = {}
        if option.annotation is bool:
            words = {"nargs": "?", "const": "true"}
        elif option.annotation == WORDS:
            words = {"nargs": "+"}
        groups[option.group].add_argument(
            f"--{option.name}",
            *(f"--{other}" for other, name in also.items() if name == option.name),
            dest=option.name,
            default=argparse.SUPPRESS,
            help=f"{option.help}{choices} (default: {option.default_text})".replace("%", "%%"),
            metavar=metavar,
            **words,
        )
    return parser


def _read_flags(by_name: Mapping[str, Option], argv: Sequence[str], prog: str) -> dict[str, Any]:
    """Return the options that stand on the command line, and no others."""
    words = [_with_underscores(word) for word in argv]
    also = aliases(by_name)
    by_own_names({name: None for dashes, name in map(_split_flag, words) if dashes}, by_name)
    for word in words:
        dashes, name = _split_flag(word)
        if dashes == "-" or (dashes and name not in by_name and name not in also):
            nearest = _meant(name, by_name).replace("mean ", "mean --")
            raise UserError(f"unknown flag {dashes}{shown(name)}{nearest} (`{prog} --help` lists all)")
    try:
        given = vars(build_parser(by_name).parse_args(words))
    except UserError as error:
        raise _explained(error, by_name) from None
    values = {}
    for name, text in given.items():
        values[name] = tuple(text) if isinstance(text, list) else by_name[name].from_text(text)
        if not by_name[name].allows(values[name]):
            raise UserError(by_name[name].explain(text))
    return values


def _meant(name: str, by_name: Collection[str]) -> str:
    """Ask for the option that an unknown name may stand for, by its letters or by what others call it."""
    return did_you_mean(name.replace("-", "_"), [*by_name, *aliases(by_name)], 0.6, of_others(by_name))


def _split_flag(word: str) -> tuple[str, str]:
    """Return the dashes and the name of a flag; both are empty when the word is a value, such as -1."""
    flag = re.match(r"(--?)([A-Za-z][^=]*)", word)
    return (flag.group(1), flag.group(2)) if flag else ("", "")


def _with_underscores(word: str) -> str:
    """A word with the hyphens in a flag's name, but not in its value, as underscores."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _explained(error: UserError, by_name: Mapping[str, Option]) -> UserError:
    """The parser's report with the rule of the option that it is about."""
    report = str(error)
    flag = re.match(r"argument --(\w+)", report)
    if flag is not None and flag[1] in by_name:
        return UserError(f"--{flag[1]}: needs a value: {by_name[flag[1]].rule}")
    return UserError(report.replace("unrecognized arguments:", "these belong to no option:"))


def aliases(names: Collection[str]) -> dict[str, str]:
    """Other names that a command takes, and its own for each.

    Args:
        names: Of its options.
    """
    found = {other: name for name, other in RENAMED if name in names and other not in names}
    for pair in SAME:
        for name, other in (pair, pair[::-1]):
            if name in names and other not in names:
                found[other] = name
    return found


def by_own_names(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Given options under a command's own names; unknown ones stay as they are.

    Args:
        given: Options by any of their names.
        names: Of the command's options.

    Raises:
        UserError: One is given under both of its names.
    """
    known_as = aliases(names)
    for other, name in known_as.items():
        if other in given and name in given:
            raise UserError(f"{other}: is another name of {name}, which is given too; leave one of them out")
    return {known_as.get(name, name): value for name, value in given.items()}
