"""How far apart peers are, and by which of LoRA's factors: from the folder of a comparison to one file.

    fedloom compare configs/compare/sst2-drift.yaml --out_dir FOLDER
    python benchmarks/drift.py configs/compare/sst2-drift.yaml FOLDER --out benchmarks/results/drift.json

The A that all peers start from stands in no file of a run that trains it; it is that of the runs of the same
seed whose A is frozen. B_i A_i − B̄ Ā = (B_i − B̄) A_i + B̄ (A_i − Ā) says how much of the consensus error is
there because the Bs differ, and how much because the As do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fedloom.process import prepare_process

prepare_process()

import torch  # noqa: E402
from comparison_folder import Runs, write_result  # noqa: E402
from jaxtyping import Float64  # noqa: E402
from torch import Tensor  # noqa: E402

from fedloom.evaluation.adapter_tensors import read_row  # noqa: E402
from fedloom.model.adapters.products import product_norms  # noqa: E402
from fedloom.runs.record import RunRecord  # noqa: E402

Factors = dict[str, float]
"""See `factors`."""
Stack = dict[str, Float64[Tensor, "peers rows columns"]]
"""A parameter of LoRA by its name, of all peers."""

SETTINGS = ("name", "training_type", "mixing_step", "local_steps", "batch_size", "lr", "lora_r", "alpha")
KEPT = ("consensus_error", "consensus_error_relative")


def read_adapters(checkpoint: Path) -> Stack:
    """The factors of all peers, in float64."""
    peers = [read_row(folder) for folder in sorted(checkpoint.glob("peer-*"))]
    return {
        name: torch.stack([peer[name].double() for peer in peers]) for name in peers[0] if ".lora_" in name
    }


def factors(adapters: Stack, start: Stack) -> Factors:
    """What has become of A, and what of the consensus error each factor stands for.

    Args:
        adapters: Of all peers.
        start: As everybody started; its A counts.

    Returns:
        `start_rms`, the root mean square of A's entries at the start; `moved`, `apart` and `grown`, the norms
        of A_i − A₀, A_i − Ā and A_i relative to that of A₀ (root mean squares over peers); `by_B` and `by_A`,
        means over peers of the sums over modules of ‖(B_i − B̄) A_i‖_F and ‖B̄ (A_i − Ā)‖_F; and
        `by_B_at_start`, with A₀ in place of A_i.
    """
    squares = dict.fromkeys(("start", "moved", "apart", "grown"), 0.0)
    by = dict.fromkeys(("by_B", "by_A", "by_B_at_start"), 0.0)
    entries = 0
    for name in (name for name in adapters if ".lora_A." in name):
        A, B, A0 = adapters[name], adapters[name.replace(".lora_A.", ".lora_B.")], start[name][:1]
        mean_A, mean_B = A.mean(0, keepdim=True), B.mean(0, keepdim=True)
        squares["start"] += float(A0.square().sum())
        for what, factor in (("moved", A - A0), ("apart", A - mean_A), ("grown", A)):
            squares[what] += float(factor.square().sum()) / len(A)
        entries += A0.numel()
        by["by_B"] += float(product_norms(B - mean_B, A).mean())
        by["by_A"] += float(product_norms(mean_B.expand_as(B), A - mean_A).mean())
        by["by_B_at_start"] += float(product_norms(B - mean_B, A0.expand_as(A)).mean())
    at_start = squares.pop("start")
    sizes = {what: (square / at_start) ** 0.5 for what, square in squares.items()}
    return {"start_rms": (at_start / entries) ** 0.5, **sizes, **by}


def saved(run: RunRecord) -> list[tuple[int, Path]]:
    """The run's checkpoints, each with the number of rounds done."""
    folders = sorted((run.folder / "checkpoints").glob("round-*"))
    return [(int(folder.name.removeprefix("round-")), folder) for folder in folders]


def summarised(run: RunRecord, start: Stack | None) -> dict[str, Any]:
    """What tables and figures take from a run."""
    rounds = run.rows[1:]
    return {
        "seed": run.seed,
        "settings": {name: run.options[name] for name in SETTINGS},
        **{name: [row[name] for row in rounds] for name in KEPT},
        "factors": {} if start is None else {n: factors(read_adapters(at), start) for n, at in saved(run)},
    }


def found_in(_: Path, labelled: Runs) -> dict[str, Any]:
    """What tables and figures take from all runs."""
    runs = [run for _, run in labelled]
    frozen = [run for run in runs if run.options["training_type"] == "DFL-LoRA"]
    starts = {run.seed: read_adapters(saved(run)[-1][1]) for run in frozen}
    return {"runs": [summarised(run, starts.get(run.seed)) for run in runs]}


def main(arguments: list[str] | None = None) -> int:
    """Read what is there, and write. Returns the exit status."""
    return write_result("drift", __doc__, found_in, arguments)


if __name__ == "__main__":
    sys.exit(main())
