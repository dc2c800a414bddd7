"""What it costs to clip each example's gradient: fedloom in one packed pass, Opacus, and neither.

    python benchmarks/private_step.py --out benchmarks/results/private-step.json

Opacus (https://opacus.ai) goes into an environment of its own: `pip install --no-deps opacus opt_einsum`.

**Contenders.** Each computes Σ_e g_e · min(1, C / ‖g_e‖) of one step, or where nothing is clipped Σ_e g_e, of
the same random sequences of one length (no pads) from the same LoRA adapter; no noise is drawn, no parameter
moves, dropout is off:

- `peft`: HF PEFT's gradient of the whole batch, nothing clipped.
- `opacus`: Opacus' hooks on the PEFT model, which keep every example's gradient of each LoRA factor.
- `opacus-ghost`: its ghost clipping: norms in one backward pass, the clipped sum in a second.
- `fedloom`: the packed pass, nothing clipped.
- `fedloom-clipped`: the packed pass of `--privacy example`.

The last quarter of a sequence is its answer (a classifier has one label); PEFT and Opacus compute logits of
the answer alone, as fedloom does. The first three know one client only, and share nothing. C is the median of
the first client's norms, so that half of its examples are cut. `1x16x64:32` is one client with 16 examples of
64 tokens, the first 32 of which all have in common: fedloom computes those once per client where nothing is
clipped.

**Taking turns.** In one process: after a warm-up the contenders run one after another, then again; ratios are
taken within each turn, and their median is reported, of the process's CPU time and of wall time, which on a
machine with other work is the worse of the two.

**Failing.** Exit status 1, and nothing is written, where fedloom's clipped sum is further than 1e-3 from
either of Opacus' (float32 rounds differently in the two). Status 2 for a mistake of the user.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.process import prepare_process

prepare_process()

if find_spec("opacus") is None:
    raise SystemExit(
        "error: opacus is missing; `pip install --no-deps opacus opt_einsum` into an environment of its own"
    )

import torch  # noqa: E402
from clipping import RANK, Fedloom, Peft  # noqa: E402
from machine import describe_machine, versions  # noqa: E402
from render import as_markdown  # noqa: E402
from workload import SEED  # noqa: E402

from fedloom.data.encode import Tokens  # noqa: E402
from fedloom.errors import UserError  # noqa: E402
from fedloom.model.bank import Row, norm_of  # noqa: E402
from fedloom.model.base import is_encoder, load_base  # noqa: E402
from fedloom.model.quiet import quieten  # noqa: E402

CLASSES = 2
TOLERANCE = 1e-3


class Shape(NamedTuple):
    """So many clients with so many examples of so many tokens, the first ``shared`` of which all have."""

    clients: int
    examples: int
    tokens: int
    shared: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """``CLIENTSxEXAMPLESxTOKENS[:SHARED]``."""
        sizes, _, shared = text.partition(":")
        return cls(*map(int, sizes.split("x")), int(shared or 0))

    def sequences(self, vocabulary: int, classify: bool) -> list[list[Tokens]]:
        """Random ones, of each client."""
        draws = torch.Generator().manual_seed(SEED)
        ids = torch.randint(10, vocabulary, (self.clients, self.examples, self.tokens), generator=draws)
        ids[..., : self.shared] = ids[0, 0, : self.shared]
        start = self.tokens if classify else self.tokens - self.tokens // 4
        return [
            [Tokens(own, start, i % CLASSES if classify else -1) for i, own in enumerate(client)]
            for client in ids.tolist()
        ]


def apart(ours: Row, theirs: Row) -> float:
    """Relative difference over all parameters."""
    assert ours.keys() == theirs.keys()
    return norm_of({name: t - theirs[name] for name, t in ours.items()}) / norm_of(theirs)


def measure(peft: Peft, fedloom: Fedloom, shape: Shape, vocabulary: int, repeats: int) -> dict[str, Any]:
    """All contenders that know so many clients, in turns."""
    clients = shape.sequences(vocabulary, peft.classify)
    first, clip = clients[0], peft.median_norm(clients[0])
    fedloom.model.share_prefix(shape.shared)
    ways: dict[str, Callable[[], Any]] = {
        "peft": lambda: peft.peft(first),
        "opacus": lambda: peft.opacus(first, clip),
        "opacus-ghost": lambda: peft.opacus_ghost(first, clip),
        "fedloom": lambda: fedloom.plain(clients),
        "fedloom-clipped": lambda: fedloom.clipped(clients, clip),
    }
    if shape.clients > 1 or shape.shared:
        ways = {name: way for name, way in ways.items() if name.startswith("fedloom")}
    turns: list[dict[str, tuple[float, float]]] = []
    for turn in range(repeats + 1):
        taken = {}
        for name, way in ways.items():
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            taken[name] = time.process_time() - cpu, time.perf_counter() - wall
            print(
                f"{turn or 'warm-up'}  {name:16} {taken[name][0]:8.3f} s of CPU", file=sys.stderr, flush=True
            )
        turns.append(taken)
    ours, unit = fedloom.clipped(clients, clip).row(0), 2.0**10
    exact: dict[str, Row] = {}
    if "opacus" in ways:
        within = clip * (1 - 128 * torch.finfo(torch.float32).eps)  # fedloom leaves as much to rounding
        exact["opacus"] = peft.opacus(first, within, unit)
        exact["opacus-ghost"] = peft.opacus_ghost(first, within, unit)
    return {
        **shape._asdict(),
        "cpu_seconds": {name: [turn[name][0] for turn in turns[1:]] for name in ways},
        "wall_seconds": {name: [turn[name][1] for turn in turns[1:]] for name in ways},
        "apart": {name: apart(ours, row) for name, row in exact.items()},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--models", nargs="+", default=["minilm", "smollm2-135m"], help="hub ids, folders or aliases")
    add("--targets", nargs="+", default=["", "all-linear"], help="LoRA's modules; '': query and value")
    add(
        "--shapes",
        nargs="+",
        type=Shape.of,
        default=[Shape.of(text) for text in ("1x16x32", "1x16x32:16", "8x4x32")],
        help="CLIENTSxEXAMPLESxTOKENS[:SHARED]",
    )
    add("--repeats", type=int, default=3)
    add("--out", type=Path, help="JSON file of the result")
    return parser.parse_args(arguments)


def command_line(options: argparse.Namespace) -> str:
    """What was asked for, without this machine's folders."""
    shapes = [f"{c}x{e}x{t}" + (f":{shared}" if shared else "") for c, e, t, shared in options.shapes]
    words = ["--models", *(Path(name).name for name in options.models)]
    words += ["--targets", *(targets or "''" for targets in options.targets), "--shapes", *shapes]
    return " ".join(["python benchmarks/private_step.py", *words, f"--repeats {options.repeats}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    options = parse(arguments)
    quieten()
    rows = []
    try:
        for name in options.models:
            classify = is_encoder(name)
            more = {"num_labels": CLASSES} if classify else {}

            def load(name: str = name, more: dict[str, int] = more) -> Any:
                return load_base(name, device="cpu", dtype="float32", **more).model

            for targets in options.targets:
                peft, fedloom = Peft(load, targets, classify), Fedloom(load, targets)
                vocabulary = fedloom.model.model.config.vocab_size
                for shape in options.shapes:
                    if classify and shape.shared:  # a token sees what stands behind it: nothing is shared
                        continue
                    row = measure(peft, fedloom, shape, vocabulary, options.repeats)
                    rows.append({"model": Path(name).name, "targets": targets or "query and value", **row})
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    worst = max((far for row in rows for far in row["apart"].values()), default=0.0)
    if not worst < TOLERANCE:
        print(f"FAILED: clipped sums are {worst:.2g} from Opacus', more than {TOLERANCE:g}", file=sys.stderr)
        return 1
    result = {
        "kind": "private-step",
        "rows": rows,
        "settings": {"rank": RANK, "repeats": options.repeats},
        "machine": describe_machine(torch.device("cpu")),
        "versions": {**versions(), "opacus": version("opacus")},
        "date": date.today().isoformat(),
        "command": command_line(options),
    }
    print(as_markdown(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
