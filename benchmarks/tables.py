"""Results as tables in Markdown, with the machine, the versions and the date below."""

from __future__ import annotations

import statistics
from typing import Any

from across import across_table
from bytes_saved import bytes_saved_table
from cells import DASH, gib, mean_of, percent_of, table, times
from compared import compared_table
from tables_drift import drift_table
from tables_over_rounds import over_rounds_table
from tables_peers import consensus_table, peers_table, scale_table
from tables_private import private_step_table
from tables_ranks import ranks_table


def as_markdown(result: dict[str, Any]) -> str:
    """The table of a result, with the machine, the versions and the date below it."""
    tables = {
        "round": _round_table,
        "memory": _memory_table,
        "layers": _layers_table,
        "policies": _policies_table,
        "peers": peers_table,
        "peers-scale": scale_table,
        "consensus": consensus_table,
        "compared": compared_table,
        "across": across_table,
        "bytes-saved": bytes_saved_table,
        "drift": drift_table,
        "over-rounds": over_rounds_table,
        "evaluate": _evaluate_table,
        "ranks": ranks_table,
        "startup": _startup_table,
        "private-step": private_step_table,
    }
    # What is taken from other results has their machines.
    origin = ["", *_origin(result)] if "machine" in result else []
    return "\n".join([*tables[result["kind"]](result), *origin]) + "\n"


def _round_table(result: dict[str, Any]) -> list[str]:
    settings, rows = result["settings"], []
    names = {
        "padded": f"PEFT, client by client, padded to {settings['pad']}",
        "dynamic": "PEFT, client by client, padded to the longest of the batch",
        "central": "PEFT, one central model on the same batches",
        "central-wide": "PEFT, one central model, each step's batches as one",
        "fedloom": "**fedloom**",
        "fedloom-loop": "fedloom, with a loop over the clients' own weights",
    }
    for row in result["contenders"]:
        auto = " (`dtype=auto`)" if row["name"] == "fedloom" and row["dtype"] == result["auto"] else ""
        spread = f"{min(row['seconds']):.3g}{DASH}{max(row['seconds']):.3g}"
        cells = [
            names[row["name"]] + auto,
            row["dtype"],
            f"{row['median_seconds']:.3g} ({spread})",
            str(row["tokens"]),
            f"{row['useful_tokens_per_second']:.0f}",
            f"{row['gemm_share']:.0%}",
            times(row["times_padded"]),
            times(row["times_central"]),
        ]
        if row["peak_bytes"] is not None:
            cells.append(f"{row['peak_bytes'] / 2**30:.2f} GiB")
        rows.append(cells)
    head = ["one round", "dtype", "seconds", "tokens computed", "useful tokens/s", "of GEMM rate"]
    head += ["× padded loop", "× central"] + ["GPU memory"] * (len(rows[0]) - 8)
    return [*table(head, rows), "", *_round_notes(result)]


def _round_notes(result: dict[str, Any]) -> list[str]:
    settings, data = result["settings"], result["data"]
    repeats = [len(row["seconds"]) for row in result["contenders"]]
    counts = str(max(repeats)) if len(set(repeats)) == 1 else f"{min(repeats)} to {max(repeats)}"
    gemm = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in result["gemm_flops"].items())
    notes = [
        f"{result['model']}, {settings['data']}: {settings['clients']} clients × {settings['batches']} "
        f"batches of {settings['batch_size']}, LoRA r 16 on q and v; {data['useful_tokens']} tokens in "
        f"{data['sequences']} sequences (longest {data['longest']}), of which {data['labels']} are answers; "
        f"{data['shared_prefix']} tokens begin every sequence, and fedloom computes them once per client.",
        f"Medians of {counts} interleaved runs (smallest{DASH}largest); ratios are taken within each turn. "
        "× padded loop: how many times as fast as the first row; × central: as the central model on the "
        f"same batches in the same dtype. GEMM rate measured in the same run: {gemm}.",
    ]
    if result["auto"] == "float32" and settings["quantize"] == "none":
        notes.append("`dtype=auto` chose float32 here, so the two are one measurement.")
    loops = {row["name"] for row in result["contenders"]} & {"padded", "dynamic", "fedloom-loop"}
    whom = "the PEFT loop" if "fedloom-loop" not in loops else "both loops, PEFT's and its own,"
    for dtype, apart in result["agreement"].items():
        notes.append(
            f"Per-client losses of fedloom and of {whom} differ by at most {apart['losses']:.1g} "
            f"(relative) in {dtype}, the lengths of their steps by {apart['moved']:.1g}."
        )
    return notes


def _memory_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [str(run["clients"]), str(run["tokens"]), gib(run["peak_bytes"]), gib(run["training_peak_bytes"])]
        for run in result["runs"]
    ]
    rows.append(["ratio", "", f"{result['ratio']:.2f}", times(result["training_ratio"])])
    head = ["clients in the round", "tokens", "peak resident, loading included", "peak while training"]
    note = f"{result['model']} in {result['dtype']}, {result['settings']['data']}; waves of the same size."
    return [*table(head, rows), "", note]


def _layers_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for row in result["contenders"]:
        layers = row["selected_layers"]
        chosen = "all" if layers is None or len(layers) == result["settings"]["layers"] else _numbers(layers)
        spread = f"{min(row['seconds']):.3g}{DASH}{max(row['seconds']):.3g}"
        rows.append(
            [
                row["name"],
                chosen,
                f"{row['median_seconds']:.3g} ({spread})",
                times(row["of_fed"]),
                times(row["of_all"]),
                f"{row['bytes'] / 1e6:.1f} MB",
            ]
        )
    settings = result["settings"]
    head = ["one round", "layers trained", "seconds", "of `fed`", "of `all`", "bytes, up and down"]
    turns = len(result["contenders"][0]["seconds"])
    note = (
        f"{settings['model_name']} in {result['dtype']}, {settings['data_name']}: {settings['clients']} "
        f"clients × {settings['client_batch_per_step']} batches of 2, LoRA r 16 on q and v, "
        f"{settings['layers']} layers. Medians of {turns} turns (smallest{DASH}largest), ratios within each."
    )
    return [*table(head, rows), "", note]


def _policies_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, runs in result["runs"].items():
        sent = statistics.mean(run["bytes_up"] + run["bytes_down"] for run in runs)
        rows.append(
            [
                f"`configs/{name}.yaml`",
                mean_of(run["val_loss"] for run in runs),
                percent_of(run["val_accuracy"] for run in runs),
                percent_of(run["answer_accuracy"] for run in runs),
                f"{sent / 1e6:.1f} MB",
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    head = ["run", "validation loss", "token accuracy", "answers right", "bytes, up and down", "seconds"]
    every = [run for runs in result["runs"].values() for run in runs]
    before = {run["seed"]: run["answer_accuracy_before"] for run in every}
    note = (
        f"Means over the seeds {', '.join(map(str, before))} (smallest{DASH}largest), {every[0]['rounds']} "
        f"rounds each. Answers right before training: {percent_of(before.values())}."
    )
    return [*table(head, rows), "", note]


def _evaluate_table(result: dict[str, Any]) -> list[str]:
    settings, rows = result["settings"], []
    names = {
        "peft": "PEFT and `generate`, one after another",
        "alone": "fedloom, one after another",
        "stacked": f"**fedloom, {settings['adapters']} in one pass**",
    }
    for name, seconds in result["seconds"].items():
        spread = f"{min(seconds):.3g}{DASH}{max(seconds):.3g}"
        ratios = [
            statistics.median(own / other for own, other in zip(seconds, result["seconds"][of], strict=True))
            for of in ("peft", "alone")
        ]
        median = statistics.median(seconds)
        speed = f"{result['tokens_written'] / median:.0f}"
        rows.append([names[name], f"{median:.3g} ({spread})", speed, *map(times, ratios)])
    different = result["different"]
    agreement = (
        f"Of the answers in one pass {different['alone']} differ from those alone, "
        f"{different['peft']} from PEFT's."
        if any(different.values())
        else "All answers are equal, token by token."
    )
    asked = (
        f"{settings['adapters']} adapters (LoRA r 16) answer {settings['prompts']} problems each, "
        f"{settings['batch_size']} prompts per pass and adapter, at most {settings['max_new_tokens']} new "
        "tokens"
    )
    note = (
        f"{settings['model']} in {settings['dtype']}, {settings['data_name']}: {asked}; "
        f"{result['prompt_tokens']} tokens of prompts per adapter, {result['tokens_written']} tokens written "
        f"by all, the longest answer has {result['longest_answer']}. Medians of {len(seconds)} turns "
        f"(smallest{DASH}largest), ratios within each. {agreement}"
    )
    head = ["all answers", "seconds", "tokens written/s", "of PEFT's time", "of one after another"]
    return [*table(head, rows), "", note]


def _numbers(layers: list[int]) -> str:
    """``[3, 4, 5, 9]`` as ``3-5, 9``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}{DASH}{run[-1]}" for run in runs)


def _startup_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}"]
        for name, (before, after) in result["seconds"].items()
    ]
    head = ["until the first round", "seconds before", "after", "ratio"]
    note = f"Processor time, user and system, of a process from its start; shortest of {result['repeats']}."
    return [*table(head, rows), "", note]


def _origin(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}"
    where = f"{machine['gpu']}; {cpu}" if "gpu" in machine else cpu
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [f"{where}. {packages}. {result['date']}, `{result['command']}`."]
