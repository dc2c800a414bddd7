"""What is mistyped is told before torch is loaded, and who starts something hears of it before that, too."""

import json
import subprocess
import sys
import types

import pytest
from tiny import save_tiny_llama

from fedloom.commands.cli import main
from fedloom.errors import UserError

SCRIPT = """
import json, sys, time
from fedloom.commands.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 2
print(time.process_time(), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with data, a run, clients' data and a folder that is no model."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "questions.jsonl").write_text('{"question": "1?", "answer": "1"}\n' * 9)
    (folder / "no-model").mkdir()
    (folder / "clients" / "client_1").mkdir(parents=True)
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "config.yaml").write_text("lr: 1\n")
    (folder / "peer.key").write_bytes(b"key")
    (folder / "peer.key").chmod(0o600)
    return folder


OF_ARITHMETIC = "fed --model_name smollm2-135m --data_name arithmetic"
MISTAKES = {
    "fed --model_name smollm2-135m --data_name qa --data_dir question.jsonl": (
        "data_dir 'question.jsonl' does not exist",
        "did you mean questions.jsonl?",
    ),
    "fed --model_name smollm2-135m --data_name ./question.jsonl": ("data_name 'question.jsonl' does not",),
    "fed --model_name smollm2-135m --data_name qustions*.jsonl": ("matches no file",),
    "dfl --model_checkpoint minilm --dataset_type ./questins.jsonl": ("did you mean questions.jsonl?",),
    "fed --model_name ./no-modl --data_name arithmetic": (
        "model './no-modl': there is no such file or folder",
        "did you mean no-model?",
    ),
    "fed --model_name no-model --data_name arithmetic": ("the folder holds no config.json",),
    "fed --model_name no-modl --data_name arithmetic": (
        "the hub cannot be reached",
        "did you mean no-model?",
    ),
    "fed --model_name smollm-135m --data_name arithmetic": ("did you mean smollm2-135m?",),
    "dfl --model_checkpoint ./none/model": ("model './none/model': there is no such file",),
    "fed --model_name smollm2-135m --data_name qa --client_num 2 --client_num_per_step 2 "
    "--dataset_path_template clients/client_{i} --val_dataset_path_template questions.jsonl": (
        "needs 'clients/client_2', which cannot be found; 'clients' holds client_1",
    ),
    f"{OF_ARITHMETIC} --exp_name mine": ("runs/mine: holds another run",),
    f"{OF_ARITHMETIC} --exp_name other --resume": ("runs/other: no run to resume here",),
    "eval --adapter runs/mone": ("adapter: there is no folder runs/mone; did you mean mine?",),
    "eval --model_name smollm2-135m --data_name qa --data_dir question.jsonl": ("'question.jsonl' does not",),
    "chat runs/mine": ("adapter: runs/mine holds no adapter_config.json",),
    "merge runs/mone --output_path m": ("did you mean mine?",),
    "split --data_name question.jsonl --output_path out": ("data_name 'question.jsonl' does not exist",),
    "peer --model_checkpoint minilm --identity per.key --neighbors n.yaml": (
        "identity: cannot read per.key",
    ),
    "peer --model_checkpoint minilm --identity peer.key --neighbors n.yaml": ("neighbors: n.yaml: cannot",),
}


def test_mistyped_paths_are_told_before_torch_is_loaded(there):
    words = [line.split() for line in MISTAKES]
    command = [sys.executable, "-c", SCRIPT, json.dumps(words)]
    done = subprocess.run(command, cwd=there, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    messages = done.stderr.splitlines()
    for (line, parts), message in zip(MISTAKES.items(), messages, strict=True):
        assert message.startswith("fedloom: error: "), line
        for part in parts:
            assert part in message, line
    seconds, with_torch = done.stdout.split()
    assert with_torch == "False" and float(seconds) < 2


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("fed --model_name {model} --data_name arithmetic", "fed"),
        ("dfl --model_checkpoint {model} --dataset_type arithmetic", "dfl"),
        ("eval --model_name {model} --data_name arithmetic", "eval"),
    ],
)
def test_a_command_says_what_it_does_before_it_loads_what_does_it(
    tmp_path, monkeypatch, capsys, words, module
):
    """The module that does it is one that says what had been printed when it was asked to begin."""
    before = []

    def run(config):
        before.append(capsys.readouterr().err)
        raise UserError("that is enough")

    work = types.SimpleNamespace(**{f"run_{module}": run})
    model = save_tiny_llama(tmp_path / "model")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, f"fedloom.commands.{module}", work)
    assert main(words.format(model=model).split()) == 2
    assert before == [f"fedloom {module}: {model}{'' if module == 'eval' else ' on arithmetic'}, loading …\n"]
