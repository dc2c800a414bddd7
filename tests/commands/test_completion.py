"""What a shell completes, by what `fedloom completion` prints."""

import io
import shutil
import subprocess
from contextlib import redirect_stdout

import pytest

from fedloom.commands.cli import COMMANDS, main
from fedloom.options.methods import METHODS

ASK = """
eval "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_fedloom
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts():
    """What is printed for each shell."""
    made = {}
    for shell in ("bash", "zsh", "fish"):
        with redirect_stdout(io.StringIO()) as printed:
            assert main(["completion", shell]) == 0
        made[shell] = printed.getvalue()
    return made


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedloom f", {"fed", "flower"}),
        ("fedloom fed --client_n", {"--client_num", "--client_num_per_step"}),
        ("fedloom dfl --client_n", {"--client_num"}),
        ("fedloom fed --train_mode ", {"local", "fed", "fedGradFocus"}),
        ("fedloom fed --lr 2e-3 --resume t", {"true"}),
        ("fedloom fed --method FedA", {row.name for row in METHODS if row.name.startswith("FedA")}),
        ("fedloom dfl --aggregator med", {"median"}),
        ("fedloom report runs/", {"runs/one", "runs/other"}),
        ("fedloom fed --data_dir da", {"data.jsonl"}),
        ("fedloom completion z", {"zsh"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(scripts, line, expected, tmp_path):
    for run in ("one", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "data.jsonl").touch()
    command = ["bash", "-c", ASK, "bash", scripts["bash"], *line.split(" ")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert {*done.stdout.split()} == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_knows_every_command(scripts, shell):
    assert [name for name in COMMANDS if name not in scripts[shell]] == []
    assert "fedGradFocus" in scripts[shell] and "SCAFFOLD" in scripts[shell]
    if shutil.which(shell):
        read = subprocess.run([shell, "-n"], input=scripts[shell], text=True, timeout=60)
        assert read.returncode == 0


def test_another_shell_is_a_mistake(capsys):
    assert main(["completion", "fisch"]) == 2
    assert "shell: fisch is not one of bash, zsh, fish; did you mean fish?" in capsys.readouterr().err
