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
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.process import prepare_process

prepare_process()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from machine import describe_machine, versions  # noqa: E402
from peft import get_peft_model  # noqa: E402
from render import as_markdown  # noqa: E402
from torch import Tensor  # noqa: E402
from workload import starting_adapter  # noqa: E402

from fedloom.client.local import LocalRules, mean_step, passes, step_gradients  # noqa: E402
from fedloom.client.optimisers import sgd  # noqa: E402
from fedloom.client.private import ExamplePrivacy, Noised, noised_gradients  # noqa: E402
from fedloom.data.encode import Tokens  # noqa: E402
from fedloom.errors import UserError  # noqa: E402
from fedloom.model.adapters.choice import lora  # noqa: E402
from fedloom.model.adapters.supported import saved_name  # noqa: E402
from fedloom.model.bank import AdapterBank, Row, norm_of  # noqa: E402
from fedloom.model.base import is_encoder, load_base  # noqa: E402
from fedloom.model.layout import Batch  # noqa: E402
from fedloom.model.memory import auto_wave_tokens  # noqa: E402
from fedloom.model.quiet import quieten  # noqa: E402
from fedloom.model.stacked import StackedModel  # noqa: E402

try:
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
except ImportError as missing:
    raise SystemExit(
        "error: opacus is missing; `pip install --no-deps opacus opt_einsum` into an environment of its own"
    ) from missing

RANK, ALPHA, SEED, CLASSES = 8, 16, 3407, 2
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


class Peft:
    """A PEFT model as it is, with Opacus' hooks, and with its ghost clipping."""

    def __init__(self, load: Callable[[], Any], targets: str, classify: bool):
        self.classify = classify
        self.config = lora(load(), r=RANK, alpha=ALPHA, dropout=0.0, target_modules=targets or None)
        self.plain, self.hooked, self.ghost = (self._adapted(load()) for _ in range(3))
        self.modules = {
            "opacus": GradSampleModule(self.hooked, loss_reduction="sum"),
            "opacus-ghost": GradSampleModuleFastGradientClipping(self.ghost, loss_reduction="sum"),
        }
        kinds = {"opacus": DPOptimizer, "opacus-ghost": DPOptimizerFastGradientClipping}
        self.optimisers = {
            name: kind(
                torch.optim.SGD(self._trained(self.modules[name]), lr=0.1),
                noise_multiplier=0.0,
                max_grad_norm=1.0,
                expected_batch_size=None,
                loss_reduction="sum",
            )
            for name, kind in kinds.items()
        }

    def _adapted(self, model: Any) -> Any:
        wrapped = get_peft_model(model, self.config).eval()  # dropout is off
        for module in wrapped.modules():  # Opacus looks at what trains
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                module.train()
        named = self._named(wrapped)
        start = starting_adapter(named)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(start[name])
        return wrapped

    def _named(self, model: Any) -> dict[str, Any]:
        return {saved_name(n, self.config): p for n, p in model.named_parameters() if p.requires_grad}

    @staticmethod
    def _trained(model: Any) -> list[Any]:
        return [p for p in model.parameters() if p.requires_grad]

    def losses(self, model: Any, sequences: Sequence[Tokens]) -> Tensor:
        """Each example's own: of its class, or the mean over its answer."""
        ids = torch.tensor([s.ids for s in sequences])
        if self.classify:
            return F.cross_entropy(
                model(input_ids=ids).logits, torch.tensor([s.label for s in sequences]), reduction="none"
            )
        answer = len(sequences[0].ids) - sequences[0].answer_start
        logits = model(input_ids=ids, logits_to_keep=answer + 1).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, -answer:], reduction="none").mean(1)

    def peft(self, sequences: Sequence[Tokens]) -> Row:
        """Nothing clipped."""
        self.plain.zero_grad()
        self.losses(self.plain, sequences).sum().backward()
        return {name: p.grad for name, p in self._named(self.plain).items()}

    def opacus(self, sequences: Sequence[Tokens], clip: float, unit: float = 1.0) -> Row:
        """Every example's gradient, from hooks.

        Args:
            sequences: The examples.
            clip: C.
            unit: Opacus adds 1e-6 to each norm; of losses, and a C, so many times as large that is nothing.
        """
        optimiser = self.optimisers["opacus"]
        optimiser.zero_grad()
        optimiser.max_grad_norm = clip * unit
        (self.losses(self.modules["opacus"], sequences) * unit).sum().backward()
        optimiser.clip_and_accumulate()
        return {name: p.summed_grad / unit for name, p in self._named(self.hooked).items()}

    def opacus_ghost(self, sequences: Sequence[Tokens], clip: float, unit: float = 1.0) -> Row:
        """Norms, then a second backward pass; see `opacus`."""
        module, optimiser = self.modules["opacus-ghost"], self.optimisers["opacus-ghost"]
        optimiser.zero_grad()
        module.max_grad_norm = clip * unit
        losses = self.losses(module, sequences) * unit
        DPTensorFastGradientClipping(module, optimiser, losses, "sum").backward()
        return {name: p.grad / unit for name, p in self._named(self.ghost).items()}

    def median_norm(self, sequences: Sequence[Tokens]) -> float:
        """Of these examples\' gradients."""
        self.opacus_ghost(sequences, 1.0)
        return float(self.modules["opacus-ghost"].per_sample_gradient_norms.median())


class Fedloom:
    """The stacked model, and a step's gradients of each client."""

    def __init__(self, load: Callable[[], Any], targets: str):
        base = load()
        config = lora(base, r=RANK, alpha=ALPHA, dropout=0.0, target_modules=targets or None)
        self.model = StackedModel(base, config, seed=SEED)
        self.start = starting_adapter(self.model.initial)
        self.rules = LocalRules(sgd(0.1), wave_tokens=auto_wave_tokens(base))

    def plain(self, clients: Sequence[Sequence[Tokens]]) -> AdapterBank:
        """Nothing clipped."""
        steps = [mean_step([own], self.model.layout, [()]) for own in clients]
        return step_gradients(self.model, AdapterBank.repeat(self.start, len(clients)), steps, self.rules)[0]

    def clipped(self, clients: Sequence[Sequence[Tokens]], clip: float) -> AdapterBank:
        """As `--privacy example` clips."""
        steps = [[Batch([s], 1 / self._labels(s)) for s in own] for own in clients]
        return noised_gradients(
            self.model,
            AdapterBank.repeat(self.start, len(clients)),
            passes(steps, self.model.layout, self.rules.wave_tokens),
            ExamplePrivacy(clip, noise=0.0, key=0),
            [Noised(k, 0, expected=1.0) for k in range(len(clients))],
            0,
            {},
            {},
            None,
        )

    def _labels(self, sequence: Tokens) -> int:
        return 1 if self.model.layout.classify else len(sequence.ids) - sequence.answer_start


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
