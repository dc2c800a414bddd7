"""The tables of runs without a server."""

from __future__ import annotations

import statistics
from typing import Any

from cells import DASH, gib, interval, mean_of, percent_of, points, table


def peers_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, seconds in sorted(result["seconds"].items()):
        way, dtype = name.split()
        auto = " (`dtype=auto`)" if way == "fedloom" and dtype == result["auto"] else ""
        label = "**fedloom**" if way == "fedloom" else "PEFT, peer by peer"
        spread = f"{min(seconds):.3g}{DASH}{max(seconds):.3g}"
        rows.append([label + auto, dtype, f"{statistics.median(seconds):.3g} ({spread})"])
    settings = result["settings"]
    agreement = max(result["agreement"].values())
    note = (
        f"{settings['model']}, sst2: {settings['peers']} peers × {settings['examples']} examples in batches "
        f"of 32, LoRA r 4, Adam, dropout as the model has it; medians of {len(seconds)} turns. fedloom in "
        f"float32 is {result['float32_ratio']:.2f} times as fast as the loop in float32, with `dtype=auto` "
        f"{result['auto_ratio']:.2f} times as fast as the faster of the two loops. Without dropout the "
        f"peers' losses differ by at most {agreement:.1g} (relative)."
    )
    return [*table(["one round", "dtype", "seconds"], rows), "", note]


def scale_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            str(run["peers"]),
            f"{run['seconds']:.3g}",
            f"{1000 * run['mixing_seconds']:.2g}",
            f"{run['mixing_seconds'] / run['seconds']:.2%}",
            gib(run["training_peak_bytes"]),
        ]
        for run in result["runs"]
    ]
    before, last = result["runs"][-2:]
    note = (
        f"{result['settings']['model']}, r 4, random 4-regular graph, {last['examples']} examples per peer, "
        f"one process. From {before['peers']} to {last['peers']} a peer adds "
        f"{result['bytes_per_added_peer'] / 1e3:.0f} kB; its row has {last['row_bytes'] / 1e3:.0f} kB "
        f"and its moments {last['moment_bytes'] / 1e3:.0f} kB."
    )
    head = ["peers", "seconds per round", "mixing, ms", "share of mixing", "peak resident while training"]
    return [*table(head, rows), "", note]


def consensus_table(result: dict[str, Any]) -> list[str]:
    """Accuracy and consensus error after the last round, a row per graph and way of training."""
    by_case: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for runs in result["runs"].values():
        for run in runs:
            by_case.setdefault((run["graph"], run["training_type"]), []).append(run)
    rows = []
    for graph, way in sorted(by_case):
        runs = by_case[graph, way]
        rows.append(
            [
                graph,
                way,
                percent_of(run["evaluations"][-1]["val_accuracy"] for run in runs),
                percent_of(run["averaged_accuracy"] for run in runs),
                mean_of(run["consensus_error"][-1] for run in runs),
                mean_of(run["consensus_error_relative"][-1] for run in runs),
                f"{statistics.mean(run['bytes_up'] for run in runs) / 1e6:.0f} MB",
            ]
        )
    head = ["graph", "", "accuracy, mean of peers", "of the averaged adapter"]
    head += ["consensus error", "relative", "bytes sent"]
    return [*table(head, rows), "", _consensus_note(by_case), "", *_consensus_pairs(by_case)]


def _consensus_note(by_case: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    first = next(iter(by_case.values()))
    settings, seeds = first[0]["settings"], sorted({run["seed"] for runs in by_case.values() for run in runs})
    return (
        f"minilm, sst2: {settings['num_clients']} peers, {settings['partition']} {settings['alpha']}, "
        f"{settings['num_rounds']} rounds of {settings['local_steps']} batches of {settings['batch_size']}, "
        f"LoRA r {settings['lora_r']}, Adam, lr {settings['lr']}. Means over the seeds "
        f"{', '.join(map(str, seeds))} (smallest{DASH}largest), after the last round's mixing. Below, LoRA "
        f"against DFL-LoRA seed by seed (n = {len(seeds)}; Student's 95 % intervals, of errors those of the "
        "geometric mean): points of accuracy, how many times as large the consensus error is, and the same "
        "where LoRA stops when it has sent as many bytes."
    )


def _consensus_pairs(by_case: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """LoRA against DFL-LoRA on every graph, at equal rounds and at equal bytes."""
    rows = []
    for graph in sorted({graph for graph, _ in by_case}):
        lora, frozen = (
            sorted(by_case[graph, way], key=lambda run: run["seed"]) for way in ("LoRA", "DFL-LoRA")
        )
        pairs = list(zip(lora, frozen, strict=True))
        accuracies = [
            points(
                one["evaluations"][-1]["val_accuracy"] - other["evaluations"][-1]["val_accuracy"]
                for one, other in pairs
            ),
            points(one["averaged_accuracy"] - other["averaged_accuracy"] for one, other in pairs),
        ]
        errors = []
        for share in (1.0, frozen[0]["bytes_up"] / lora[0]["bytes_up"]):
            for name in ("consensus_error", "consensus_error_relative"):
                last = int(share * len(lora[0][name])) - 1  # every round sends as much
                # Where everybody averages with everybody, nobody is apart.
                apart = all(run[name][-1] for run in frozen)
                errors.append(
                    interval(one[name][last] / other[name][-1] for one, other in pairs) if apart else ""
                )
        rows.append([graph, *accuracies, *errors])
    head = ["LoRA against DFL-LoRA", "accuracy of peers", "of the averaged adapter", "error", "relative"]
    return table([*head, "error, equal bytes", "relative"], rows)
