"""The command line: what reaches the engine, and what a user's mistakes get."""

import re
import shlex
import subprocess
import sys
import types

import pytest

from fedloom.commands.cli import COMMANDS, main, read_config
from fedloom.commands.examples import EXAMPLES, example
from fedloom.errors import UserError
from fedloom.options.declare import options
from fedloom.options.fed import FedConfig
from fedloom.options.methods import METHODS, chosen


@pytest.fixture(autouse=True)
def _no_model_is_looked_for(monkeypatch):
    """A stand-in trains none; tests/commands/test_check_paths.py has what is looked for."""
    monkeypatch.setattr("fedloom.commands.check_paths.check_paths", lambda config: None)


@pytest.fixture
def received(monkeypatch):
    """Put a stand-in in the engine's place; return the list of configs it was called with."""
    configs: list[FedConfig] = []
    engine = types.ModuleType("fedloom.commands.fed")

    def run_fed(config):
        configs.append(config)
        return types.SimpleNamespace(checkpoint="runs/test/checkpoints/round-000001")

    engine.run_fed = run_fed
    monkeypatch.setitem(sys.modules, "fedloom.commands.fed", engine)
    return configs


def test_fed_hands_the_parsed_options_to_the_engine_and_says_where_the_adapter_lies(
    received, tmp_path, capsys
):
    (tmp_path / "my.yaml").write_text("client_num: 12\nbatch_size: 3\n")
    argv = [
        "fed",
        "--train-mode",
        "fed",
        "--data-name",
        "arithmetic",
        "--config",
        str(tmp_path / "my.yaml"),
        "--client-num",
        "8",
    ]
    assert main(argv) == 0
    [config] = received
    assert (config.train_mode, config.client_num, config.batch_size) == ("fed", 8, 3)
    assert capsys.readouterr().out == "Adapter: runs/test/checkpoints/round-000001\n"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["fed", "--clientnum", "8"], ["unknown flag --clientnum", "did you mean --client_num?"]),
        (["fed", "-lr", "1"], ["unknown flag -lr", "did you mean --lr?"]),
        (["fed", "--client", "8"], ["unknown flag --client;"]),
        (["fed", "--fed_alg", "FedAvgg"], ["fed_alg: FedAvgg", "FedAdam, FedAVG", "did you mean FedAVG?"]),
        (["fed", "--client-num", "five"], ["client_num: five is not a whole number of at least 1"]),
        (["fed", "--lr"], ["--lr: needs a value: a number above 0"]),
        (["fed", "--resume", "maybe"], ["resume: maybe is not true or false"]),
        (["fed", "stray"], ["stray"]),
        (
            ["fed", "--train_mode", "fed", "--client_num", "2", "--client_num_per_step", "4"],
            ["client_num_per_step: 4", "client_num 2"],
        ),
        (["fed", "--peft", "p-tuning"], ["p-tuning", "no layers for fedGradFocus", "--train_mode fed"]),
        (["fdd"], ["unknown command fdd", "did you mean fed?"]),
        (["train"], ["unknown command train; did you mean fed?"]),
        (["evaluate"], ["did you mean eval?"]),
        (
            ["fed", "--data_name", "arithmetic", "--device", "gpu"],
            ["device: gpu is not", "did you mean cuda?"],
        ),
        (["fed", "--data_name", "svamp"], ["did you mean ChilleD/SVAMP?"]),
        (["fed", "--data_name", "arithmetic", "--aggregator", "medain"], ["did you mean median?"]),
        (["demo", "--round", "3"], ["unknown flag --round", "did you mean --rounds?"]),
        (["demo", "--rounds", "0"], ["rounds: 0 is not a whole number of at least 1"]),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_message(received, capsys, argv, parts):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fedloom: error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err
    assert received == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_command_alone_says_what_it_does_and_gives_one_to_copy(received, capsys, name):
    assert main([name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"fedloom {name}: {COMMANDS[name].summary}\n")
    assert example(name) in err and err.splitlines()[-1].startswith("fedloom: error: ")
    assert received == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_there_to_copy_parses_and_fits_80_columns(name):
    assert max(map(len, example(name).splitlines())) < 80
    commands = re.findall(r"^ *fedloom ([\w-]+)((?:.*\\\n)*.*)$", example(name), re.MULTILINE)
    assert name in [command for command, _ in commands]
    for command, words in commands:
        words = words.replace("\\\n", " ").replace("$i", "1").removesuffix("&")
        read_config(COMMANDS[command], shlex.split(words, comments=True), prog=f"fedloom {command}")


@pytest.mark.parametrize(
    "words",
    ["", "--client_num 8", "--method FedAvg", "--train_mode local --max_steps 2"],
)
def test_the_originals_7b_model_is_not_what_saying_nothing_means(received, capsys, words):
    assert main(["fed", *words.split()]) == 2
    assert "neither a model nor data are named" in capsys.readouterr().err
    assert received == []


@pytest.mark.parametrize(
    "words", ["--preset fedgpl", "--method FedGPL", "--model_name gpt2", "--dataset_type gsm8k"]
)
def test_the_originals_defaults_stay_where_a_model_data_or_the_original_is_named(received, words):
    assert main(["fed", *words.split()]) == 0
    [config] = received
    if "gpt2" not in words:
        assert config.model_name == "meta-llama/Llama-2-7b-chat-hf"
    assert (config.data_name, config.train_mode, config.client_num) == ("gsm8k", "fedGradFocus", 50)
    assert (config.max_steps, config.lr, chosen(config)["server_optimizer"]) == (6000, 5e-4, "adam")


def test_a_users_mistake_inside_the_engine_ends_the_same_way(monkeypatch, capsys):
    def fail(config):
        raise UserError("data_dir: no file train.*")

    monkeypatch.setitem(sys.modules, "fedloom.commands.fed", types.SimpleNamespace(run_fed=fail))
    assert main(["fed", "--data_name", "arithmetic"]) == 2
    assert capsys.readouterr().err == "fedloom: error: data_dir: no file train.*\n"


def test_what_the_machine_refuses_is_told_and_what_is_a_bug_is_not(monkeypatch, capsys):
    errors = iter([OSError(28, "No space left on device", "runs/a"), OSError(9, "Bad file descriptor", "b")])

    def fail(config):
        raise next(errors)

    monkeypatch.setitem(sys.modules, "fedloom.commands.fed", types.SimpleNamespace(run_fed=fail))
    assert main(["fed", "--data_name", "arithmetic"]) == 2
    assert capsys.readouterr().err == (
        "fedloom: error: runs/a: No space left on device; free some space, or choose another place\n"
    )
    with pytest.raises(OSError, match="Bad file"):
        main(["fed", "--data_name", "arithmetic"])


@pytest.mark.parametrize("flag", [["--token", "my-own-secret"], ["--token=my-own-secret"]])
def test_a_token_on_the_command_line_is_warned_of_once_and_never_told(monkeypatch, capsys, flag):
    def fail(config):
        raise UserError(f"the hub says:\n{config.token} is not good")

    monkeypatch.setitem(sys.modules, "fedloom.commands.fed", types.SimpleNamespace(run_fed=fail))
    assert main(["fed", "--data_name", "arithmetic", *flag]) == 2
    warned, failed = capsys.readouterr().err.splitlines()
    assert warned.startswith("fedloom: warning: other users of this machine can see --token")
    assert "HF_TOKEN" in warned
    assert failed == "fedloom: error: the hub says: (hidden) is not good"


def test_an_interrupt_ends_with_status_130(monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fedloom.commands.fed", types.SimpleNamespace(run_fed=interrupt))
    assert main(["fed", "--data_name", "arithmetic"]) == 130
    assert capsys.readouterr().err == "fedloom: interrupted\n"


def test_demo_says_so_before_it_loads_anything_and_hands_over_plain_arguments(monkeypatch, capsys):
    calls = []

    def run_demo(**given):
        assert "Loading" in capsys.readouterr().out
        calls.append(given)

    monkeypatch.setitem(sys.modules, "fedloom.commands.demo", types.SimpleNamespace(run_demo=run_demo))
    assert main(["demo", "--rounds", "2", "--out-dir", "there"]) == 0
    [call] = calls
    assert call["rounds"] == 2 and call["out_dir"] == "there" and call["exp_name"] == "demo"
    assert set(call) == {"rounds", "problems", "seed", "out_dir", "exp_name", "device", "dtype"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_lists_every_command(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert len(COMMANDS) >= 2
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.summary in " ".join(out.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_command(received, capsys, name):
    first = options(COMMANDS[name].config_class)[0]
    assert main([name, f"--{first.name}", "1", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fedloom {name} ") and f"--{first.name}" in out and "(default: " in out
    assert out.rstrip().endswith(example(name).rstrip())
    assert received == []


def test_methods_are_listed_with_what_they_set_cut_off_nowhere(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("FedProx  Li et al., 2020, arXiv:1812.06127")
    assert lines[place + 1 : place + 3] == [
        "  fed: --client_rule proximal --train_mode fed",
        "  dfl: --client_rule proximal --training_type LoRA",
    ]
    assert [row.name for row in METHODS if not any(line.startswith(f"{row.name}  ") for line in lines)] == []
    assert "lora_aggregation: " in "\n".join(lines)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedloom ")


def test_as_a_process_a_mistake_gives_no_traceback_and_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedloom", "fed", "--fed-alg", "FedAvgg"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "fedloom: error: fed_alg: FedAvgg" in done.stderr
    assert "Traceback" not in done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "fedloom.options.parsing" in imported
    assert not imported & {"torch", "transformers", "peft", "datasets", "numpy"}
