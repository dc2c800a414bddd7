"""Command lines: what their words mean, and what the options mean together."""

from fuzzing import NASTY_TEXT, NUMBERS, fuzzed
from hypothesis import strategies as st

from fedloom.commands.cli import COMMANDS, read_config
from fedloom.federation.topology import build_topology
from fedloom.options.declare import options

NAMES = sorted({option.name for command in COMMANDS.values() for option in options(command.config_class)})
CHOICES = sorted(
    {word for command in COMMANDS.values() for o in options(command.config_class) for word in o.choices}
)
WORDS = st.lists(
    st.sampled_from(NAMES).map(lambda name: f"--{name}")
    | st.tuples(st.sampled_from(NAMES), NASTY_TEXT | NUMBERS).map(lambda pair: f"--{pair[0]}={pair[1]}")
    | NASTY_TEXT
    | NUMBERS.map(lambda number: str(number) if abs(number) < 10**300 else "9" * 300)
    | st.sampled_from(CHOICES),
    max_size=8,
)


@fuzzed(name=st.sampled_from(sorted(COMMANDS)), words=WORDS)
def test_any_words(folder, name, words):
    read_config(COMMANDS[name], words, f"fedloom {name}")


@st.composite
def some_options(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command, and values of some of its options that are mostly of the right type."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    chosen = draw(st.lists(st.sampled_from(options(COMMANDS[name].config_class)), max_size=6))
    words = []
    for option in chosen:
        number = draw(NUMBERS)
        right = [*option.choices, *((number,) if {int, float} & {*option.plain_types} else ())]
        value = draw(st.sampled_from(right) if right else NASTY_TEXT)
        words += [f"--{option.name}", str(value) if value != 10**400 else "1" + "0" * 400]
    return name, words


@fuzzed(chosen=some_options())
def test_options_that_are_nearly_right(folder, chosen):
    name, words = chosen
    read_config(COMMANDS[name], words, f"fedloom {name}")


@fuzzed(
    kind=st.sampled_from(
        ["ring", "grid", "torus", "hypercube", "random_regular", "erdos_renyi", "link3", "file"]
    ),
    key=st.sampled_from(["", ":", ":d=", ":p=", ":p"]),
    value=NASTY_TEXT | NUMBERS.map(lambda number: f"{number:.5g}" if abs(number) < 10**300 else "1e300"),
    peers=st.integers(-1, 40),
)
def test_graphs(folder, kind, key, value, peers):
    build_topology(f"{kind}{key}{value}", peers, 0)
