"""One round of federated fine-tuning, measured: a PEFT loop, central training, fedloom.

    python benchmarks/round.py --data_name ChilleD/MultiArith --data_dir FOLDER
    python benchmarks/round.py --data_name gsm8k --data_dir FOLDER --pad 512
    python benchmarks/round.py --device cuda --arch llama-7b --quantize 4bit
    python benchmarks/round.py --memory

**Contenders.** All train the same sequences from the same adapter (LoRA r 16 on PEFT's default modules, no
dropout, so that losses are comparable), with one SGD step per client over all its batches of the round:

- `padded`: the clients one after another with HF PEFT, batch by batch, every sequence padded to `--pad`. The
  original way.
- `dynamic`: the same, padded to the longest sequence of each batch.
- `central`: no clients: one PEFT model trains on the same batches with the same number of steps.
- `central-wide`: the same, the batches of a step as one: what a user with memory to spare would do.
- `fedloom`: the clients stacked, through the runtime that `fedloom fed` uses.
- `fedloom-loop`: the same where clients' own weights always take turns, as on a CPU; only if asked for.

In float32 and, where the machine computes in bfloat16, in bfloat16 too; the padded loop in float32 alone. The
PEFT loop is what a competent user writes: the model is loaded once, adapters are restored by copying
tensors, no gradient checkpointing, nothing is moved or read back that need not be. A time starts with lists
of token ids and ends with every client's adapter in tensors.

**Taking turns.** After a warm-up of each (all of the round; of the padded loop, where all shapes are the
same, one client) the contenders run one after another, then again: another load on the machine strikes all.
Ratios are computed within each turn, and their median is reported. PEFT and fedloom live in a process each,
started as their users would start them: fedloom's sets what `fedloom.process` sets before torch is imported,
PEFT's does not, unless `--same_start` is given. Only one computes at any time.

**Useful tokens** are the real tokens of all sequences, what they share counted in each: one number for all
contenders. **Of GEMM rate** is ``needed FLOPs / seconds / GEMM rate`` with

    needed FLOPs = 2 · (2 · P · T + 2 · V · L)

where P are the weights of the linear layers inside the decoder layers, T the useful tokens, V the weights of
the head and L the label tokens: 2 per weight and token forward, and the same backward, because frozen weights
need the gradient of their input alone. Attention and the adapters are left out. The GEMM rate is that of the
products ``[tokens, hidden] · [hidden, intermediate]`` and back with the tokens of one pass, in the same
dtype, measured in every turn. fedloom may count tokens as useful that it never computes: what all sequences
share.

**Failing.** Exit status 1, and nothing is written, where fedloom's losses per client, or the lengths of the
clients' steps, differ from those of a PEFT loop by more than 1e-3 (0.1 in bfloat16); where `--memory` finds
1.2 times the memory or more. Status 2 for a mistake of the user.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from render import as_markdown, fill
from verdict import Disagreement, Runs, check, check_memory, report
from workers import Settings, Worker

from fedloom.errors import UserError

USUAL = ("padded", "dynamic", "central", "central-wide", "fedloom")
CONTENDERS = (*USUAL, "fedloom-loop")
FEW_CLIENTS, MANY_CLIENTS = 4, 50


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="hub id, folder, GGUF file or alias")
    add("--arch", help="random weights of this shape instead: llama-7b, llama-1.1b, smollm2-135m, llama-tiny")
    add("--quantize", default="none", choices=["none", "8bit", "4bit"])
    add("--data_name", default="arithmetic", help="a task of fedloom")
    add("--data_dir", help="its local files")
    add("--clients", type=int, default=4)
    add("--batches", type=int, default=4, help="batches per client")
    add("--batch_size", type=int, default=2)
    add(
        "--pad",
        type=int,
        default=256,
        help="length to which the padded loop pads; longer sequences are left out",
    )
    add("--device", default="auto")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: all that pay here")
    add("--only", default=",".join(USUAL), help="contenders to run, with commas")
    add("--repeats", type=int, default=5)
    add("--slow_repeats", type=int, default=3, help="of the padded loop")
    add("--same_start", action="store_true", help="PEFT's process gets fedloom's settings of torch too")
    add(
        "--memory",
        action="store_true",
        help=f"peak memory with {FEW_CLIENTS} and {MANY_CLIENTS} clients instead",
    )
    add("--out", type=Path, help="JSON file of the result")
    add(
        "--write_docs",
        type=Path,
        nargs="+",
        default=[],
        help="pages whose tables are filled from --out's folder",
    )
    options = parser.parse_args([_underscored(argument) for argument in arguments])
    if options.write_docs and not options.out:
        parser.error("--write_docs needs --out")
    if unknown := set(options.only.split(",")) - set(CONTENDERS):
        parser.error(f"--only {','.join(unknown)}: must be of {', '.join(CONTENDERS)}")
    return options


def _underscored(argument: str) -> str:
    """Flags take underscores and hyphens alike, as fedloom's own do."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


def measure(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Run all contenders in turns."""
    only = options.only.split(",")
    fedloom = Worker("fedloom", settings, prepared=True)
    facts = fedloom.ask("describe")
    workers = {"fedloom": fedloom}
    workers["fedloom-loop"] = fedloom
    if set(only) - workers.keys():
        workers["peft"] = Worker("peft", settings, prepared=options.same_start)
    dtypes = chosen_dtypes(options, facts)
    plan = [(name, d) for d in dtypes for name in CONTENDERS if name in only]
    plan = [(name, dtype) for name, dtype in plan if name != "padded" or dtype == dtypes[0]]
    runs: Runs = {contender: [] for contender in plan}
    rates: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for turn in range(options.repeats + 1):
        for name, dtype in plan:
            warming = turn == 0
            if name == "padded" and turn > options.slow_repeats:
                continue
            worker = workers.get(name) or workers["peft"]
            got = worker.ask("run", name, dtype, 1 if warming and name == "padded" else None)
            print(f"{turn or 'warm-up'}  {name:12} {dtype:8} {got.seconds:8.3f} s", file=sys.stderr)
            if not warming:
                runs[name, dtype].append(got)
        for dtype in dtypes if turn else ():
            rates[dtype].append(fedloom.ask("gemm_rate", dtype, facts["useful_tokens"]))
    for worker in {*workers.values()}:
        worker.close()
    return report(facts, runs, {dtype: statistics.median(taken) for dtype, taken in rates.items()})


def chosen_dtypes(options: argparse.Namespace, facts: Mapping[str, Any]) -> list[str]:
    if options.dtype != "auto":
        return [options.dtype]
    if options.quantize != "none":
        return [facts["auto"]]
    return ["float32", "bfloat16"] if facts["native_bf16"] else ["float32"]


def measure_memory(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Few and many clients, each in a process of its own."""
    runs, facts = [], {}
    for clients in (FEW_CLIENTS, MANY_CLIENTS):
        worker = Worker("memory", settings, prepared=True)
        facts = worker.ask("describe")
        dtype = facts["auto"] if options.dtype == "auto" else options.dtype
        runs.append(worker.ask("run", dtype, clients, FEW_CLIENTS))
        worker.close()
    ratios = [
        None if few is None or many is None else many / few
        for few, many in ((runs[0][key], runs[1][key]) for key in ("peak_bytes", "training_peak_bytes"))
    ]
    if ratios[0] is None:
        raise UserError("--memory: this system does not tell the peak memory of a process; Linux does.")
    return {
        "kind": "memory",
        "dtype": dtype,
        "runs": runs,
        "ratio": ratios[0],
        "training_ratio": ratios[1],
        "machine": facts["machine"],
        "versions": facts["versions"],
    }


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without this machine's folders."""
    hidden = ("data_dir", "out", "write_docs", "arch", "model")
    asked = {name: value for name, value in vars(options).items() if name not in hidden}
    model = Path(options.model).name if Path(options.model).exists() else options.model
    asked["data"] = "random sequences" if options.arch else options.data_name
    return {
        "model": f"{options.arch}, random weights" if options.arch else model,
        "settings": asked,
        "command": command_line(options, model),
        "date": date.today().isoformat(),
    }


def command_line(options: argparse.Namespace, model: str) -> str:
    shown = {**vars(options), "model": model, "data_dir": options.data_dir and "FOLDER"}
    defaults = vars(parse([]))
    changed = [
        name for name in defaults if name not in ("out", "write_docs") and shown[name] != defaults[name]
    ]
    words = (f"--{name}" if shown[name] is True else f"--{name} {shown[name]}" for name in changed)
    return " ".join(["python benchmarks/round.py", *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(
        model=options.model,
        arch=options.arch,
        quantize=options.quantize,
        device=options.device,
        data_name=options.data_name,
        data_dir=options.data_dir,
        clients=MANY_CLIENTS if options.memory else options.clients,
        batches=options.batches,
        batch_size=options.batch_size,
        pad=options.pad,
        dtype=options.dtype,
    )
    try:
        measured = measure_memory(options, settings) if options.memory else measure(options, settings)
        result = {**origin(options), **measured}
        (check_memory if options.memory else check)(result)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except Disagreement as apart:
        print(f"FAILED: {apart}", file=sys.stderr)
        return 1
    print(as_markdown(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for page in options.write_docs:
        page.write_text(fill(page.read_text(encoding="utf-8"), options.out.parent), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
