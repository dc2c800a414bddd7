"""Processor time until the first round, cold and warm, and until the libraries are there.

    python benchmarks/startup.py --data_dir SST2 --package ../before . --out benchmarks/results/startup.json

Each start is a process of its own, which ends when the validation before the first round has been written.
Cold: nothing of fedloom's own is in the cache (a GGUF file's weights, a first validation); warm: all is.
Packages, each a checkout's folder, take turns; times are user and system together, the shortest of the turns,
since another load only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, versions

LIBRARIES = "import torch, transformers.modeling_utils, peft"
_CHILD = """
import json, os, resource, sys
from fedloom.commands.cli import COMMANDS, read_config
from fedloom.process import prepare_process

def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

name, *words = sys.argv[1:]
config = read_config(COMMANDS[name], words, f"fedloom {name}")
prepare_process()

def first(row):
    print(json.dumps({"seconds": spent(), "validation": row["val_loss"]}), flush=True)
    os._exit(0)

COMMANDS[name].run(config, on_validation=first)
"""


def starts(data_dir: str) -> dict[str, list[str]]:
    """The runs by name: the words of a command line."""
    sst2 = ["--data_name", "sst2", "--data_dir", data_dir]
    return {
        f"{command}, {model}": [command, "--model_name", model, *data]
        for command in ("fed", "dfl")
        for model, data in (("minilm", sst2), ("smollm2-135m", ["--data_name", "arithmetic"]))
    }


def start(package: str, words: list[str], cache: Path) -> dict[str, Any]:
    """One start in a process of its own; what it says."""
    environment = os.environ | {"PYTHONPATH": package, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as out_dir:
        command = [sys.executable, "-c", _CHILD, *words, "--out_dir", out_dir, "--report_to", "none"]
        # Where a process begins goes before PYTHONPATH: in another checkout it would be that one's code.
        done = subprocess.run(
            command, env=environment, cwd=package, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(package: str, code: str) -> float:
    """Processor seconds of a process that does nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": package}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="a folder with SST-2")
    parser.add_argument("--package", nargs="+", default=["."], help="checkouts; the first is 1")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="runs whose names begin so; others stay in the file")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    words.data_dir = str(Path(words.data_dir).resolve())
    words.package = [str(Path(package).resolve()) for package in words.package]
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as caches:
        for name, how in list(starts(words.data_dir).items()) * words.repeats:
            if not name.startswith(words.only):
                continue
            said = set()
            for number, package in enumerate(words.package):
                cache = Path(caches) / f"{number}"
                shutil.rmtree(cache / "fedloom", ignore_errors=True)
                for state in ("cold", "warm"):
                    one = start(package, how, cache)
                    said.add(one["validation"])
                    found[f"{name}, {state}"][package].append(one["seconds"])
            assert len(said) == 1, f"{name}: not the same numbers: {said}"
        for package in words.package:
            found["libraries alone"][package].append(seconds_of(package, LIBRARIES))
    shortest = {name: [min(times) for times in by.values()] for name, by in found.items()}
    for name, times in shortest.items():
        print(f"{name:<48}" + "".join(f"  {one:6.2f} s ({one / times[0]:.2f})" for one in times))
    if words.out:
        if words.out.exists():
            shortest = json.loads(words.out.read_text())["seconds"] | shortest
        about = {"kind": "startup", "seconds": shortest, "repeats": words.repeats}
        about |= {"machine": describe_machine(torch.device("cpu")), "versions": versions()}
        about |= {"date": date.today().isoformat()}
        about |= {"command": "python benchmarks/startup.py --data_dir SST2 --package BEFORE AFTER"}
        words.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
