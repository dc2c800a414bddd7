"""Files of options, records of runs, neighbours and graphs."""

import json

import yaml
from fuzzing import NASTY_TEXT, VALUES, damaged, fuzzed
from hypothesis import strategies as st

from fedloom.commands.cli import COMMANDS
from fedloom.evaluation.saved_adapters import options_of_run
from fedloom.federation.topology import build_topology
from fedloom.options.declare import options
from fedloom.options.fed import FedConfig
from fedloom.options.parsing import read_options
from fedloom.options.yaml_file import read_yaml
from fedloom.runtimes.libp2p.neighbors import read_neighbors

NAMES = sorted({option.name for command in COMMANDS.values() for option in options(command.config_class)})
OPTIONS = st.dictionaries(st.sampled_from(NAMES) | NASTY_TEXT, VALUES, max_size=5)
PIECES = st.lists(
    st.sampled_from(
        ["a", "b: ", "\n", "\n  ", "- ", "? ", ": ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ",
         "!!bool ", "!!int ", "!!float ", "!!set ", "!!str ", "!x ", "!", "%YAML 1.1\n", "---\n", "...",
         "|\n", ">-\n  ", '"', "'", "\\x", '"\\ud800"', '"\\U00110000"', "#", "\t", "\r", "\0", "1", "0x",
         "0o8", "1:60:60", "1e5", ".inf", ".nan", "~", "yes", "=", "<<", "2026-02-31",
         "2026-02-30 25:61:61", "9" * 500, "\ufeff", "\x85", "\u2028"]
    ),
    max_size=40,
).map("".join)  # fmt: skip
WHOLE = b"model_name: &m there\nlr: 1.0e-3\nseed: 3\nlist: [1, {a: 'b'}]\nother: {<<: {x: 1}, y: *m}\n"


def write(folder, content):
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@fuzzed(content=st.binary(max_size=200) | PIECES | damaged(WHOLE))
def test_any_file(folder, content):
    path = write(folder, content)
    read_yaml(path)
    read_options(path, FedConfig)


@fuzzed(name=st.sampled_from(sorted(COMMANDS)), values=OPTIONS, as_json=st.booleans())
def test_options_of_any_value(folder, name, values, as_json):
    text = json.dumps(values) if as_json else yaml.safe_dump(values, allow_unicode=True)
    path = write(folder, text)
    found = read_options(path, COMMANDS[name].config_class)
    assert all(value is None or isinstance(value, str | int | float | tuple) for value in found.values())


@fuzzed(values=OPTIONS)
def test_what_a_run_wrote(folder, values):
    write(folder, json.dumps(values))
    options_of_run(folder)


@fuzzed(
    entries=st.lists(
        st.fixed_dictionaries(
            {}, optional={"client": VALUES, "id": VALUES, "addresses": VALUES, "other": VALUES}
        )
        | VALUES,
        max_size=3,
    )
    | VALUES
)
def test_neighbours(folder, entries):
    read_neighbors(write(folder, json.dumps(entries)), 1, 5)


@fuzzed(
    content=st.lists(
        st.sampled_from(["0", "1", "0.5", " ", "\n", "2", "nan", "inf", "-1", "1e400", "#", ",", "x", "1_0"]),
        max_size=30,
    ).map("".join)
    | st.binary(max_size=50)
)
def test_a_graph(folder, content):
    build_topology(f"file:{write(folder, content)}", 3, 0)
