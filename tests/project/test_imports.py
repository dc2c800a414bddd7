"""Imports inside the package flow one way, as docs/architecture.md draws it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from places import HELPERS, ROOT

import fedloom

PACKAGE = Path(fedloom.__file__).parent
# Each level may use itself and what stands before it.
LEVELS = [
    {"errors", "process"},
    {"options"},
    {"data"},
    {"runs"},
    {"model"},
    {"client"},
    {"federation"},
    {"runtimes"},
    {"evaluation"},
    {"report"},
    {"training"},
    {"commands"},
    {"__main__"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The first name below the package: `fedloom/model/bank.py` is `model`."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(source: str) -> set[str]:
    """The parts of the package that a source imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside the package are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("fedloom.")}


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import fedloom.model.bank\n"
        "from fedloom import data\n"
        "def f():\n    from fedloom.client.local import x\n"
        "import torch\nfrom fedlooms.other import y\n"
    )
    assert imported_parts(source) == {"model", "data", "client"}


def test_a_file_uses_only_what_stands_before_it():
    parts = {file: part_of(file) for file in FILES if part_of(file) != "__init__"}
    assert {"errors", "federation", "commands"} <= set(parts.values()) <= LEVEL_OF.keys(), (
        "what has no place in the order of docs/architecture.md"
    )
    later = {
        str(file.relative_to(PACKAGE)): wrong
        for file, part in parts.items()
        if (wrong := {used for used in imported_parts(file.read_text()) if LEVEL_OF[used] > LEVEL_OF[part]})
    }
    assert not later, "these files must not use these parts"


def test_the_command_line_and_the_files_of_runs_load_without_torch():
    modules = ["commands.cli", "runs.metrics", "runs.checkpoint", "runs.progress", "runs.record"]
    code = (
        "import sys\n"
        + "".join(f"import fedloom.{name}\n" for name in modules)
        + "print({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


WITHOUT_RUNTIMES = """
import sys, pathlib
sys.modules |= dict.fromkeys(["flwr", "ray", "hivemind"])  # whoever imports one of them gets an error
from fedloom.commands.cli import main
assert main("flower --model_name m --data_name arithmetic --train_mode fed --output_path app".split()) == 0
assert main("identity peer.key".split()) == 2
sys.path.insert(0, sys.argv[1])
from tiny import save_tiny_llama
save_tiny_llama(pathlib.Path("llama"))
rows = "".join('{"question": "How much is %d?", "answer": "%d"}\\n' % (i, i) for i in range(20))
pathlib.Path("rows.jsonl").write_text(rows)
common = "--data_dir rows.jsonl --dtype float32 --report_to none"
fed = "fed --model_name llama --data_name qa --train_mode fed --client_batch_per_step 1"
dfl = "dfl --model_checkpoint llama --dataset_type qa --num_clients 2 --name complete --local_steps 1"
few = "--client_num 4 --client_num_per_step 2 --max_steps 1"
assert main(f"{fed} {common} {few} --exp_name fed".split()) == 0
assert main(f"{dfl} {common} --num_rounds 1 --batch_size 2 --exp_name dfl".split()) == 0
print([name for name in sys.modules if name.startswith(("fedloom.runtimes.", "fedloom.training.flower"))])
"""


def test_no_runtime_is_imported_or_needed_by_those_who_do_not_use_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RUNTIMES, str(HELPERS)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'fedloom[p2p]'" in done.stderr
    loaded = done.stdout.splitlines()[-1]
    assert "runtimes.in_process" in loaded
    for runtime in ("flower.connected_clients", "libp2p.node", "libp2p.transport", "distributed", "meeting"):
        assert f"runtimes.{runtime}" not in loaded
