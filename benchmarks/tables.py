"""Results as tables in Markdown, with the machine, the versions and the date below."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

_DASH = "–"


def as_markdown(result: dict[str, Any]) -> str:
    """The table of a result, with the machine, the versions and the date below it."""
    tables = {
        "round": _round_table,
        "memory": _memory_table,
        "layers": _layers_table,
        "policies": _policies_table,
        "peers": _peers_table,
        "peers-scale": _scale_table,
    }
    return "\n".join([*tables[result["kind"]](result), "", *_origin(result)]) + "\n"


def _round_table(result: dict[str, Any]) -> list[str]:
    settings, rows = result["settings"], []
    names = {
        "padded": f"PEFT, client by client, padded to {settings['pad']}",
        "dynamic": "PEFT, client by client, padded to the longest of the batch",
        "central": "PEFT, one central model on the same batches",
        "central-wide": "PEFT, one central model, each step's batches as one",
        "fedloom": "**fedloom**",
    }
    for row in result["contenders"]:
        auto = " (`dtype=auto`)" if row["name"] == "fedloom" and row["dtype"] == result["auto"] else ""
        spread = f"{min(row['seconds']):.3g}{_DASH}{max(row['seconds']):.3g}"
        cells = [
            names[row["name"]] + auto,
            row["dtype"],
            f"{row['median_seconds']:.3g} ({spread})",
            str(row["tokens"]),
            f"{row['useful_tokens_per_second']:.0f}",
            f"{row['gemm_share']:.0%}",
            _times(row["times_padded"]),
            _times(row["times_central"]),
        ]
        if row["peak_bytes"] is not None:
            cells.append(f"{row['peak_bytes'] / 2**30:.2f} GiB")
        rows.append(cells)
    head = ["one round", "dtype", "seconds", "tokens computed", "useful tokens/s", "of GEMM rate"]
    head += ["× padded loop", "× central"] + ["GPU memory"] * (len(rows[0]) - 8)
    return [*_table(head, rows), "", *_round_notes(result)]


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
        f"Medians of {counts} interleaved runs (smallest{_DASH}largest); ratios are taken within each turn. "
        "× padded loop: how many times as fast as the first row; × central: as the central model on the "
        f"same batches in the same dtype. GEMM rate measured in the same run: {gemm}.",
    ]
    if result["auto"] == "float32" and settings["quantize"] == "none":
        notes.append("`dtype=auto` chose float32 here, so the two are one measurement.")
    for dtype, apart in result["agreement"].items():
        notes.append(
            f"Per-client losses of fedloom and of the PEFT loop differ by at most {apart['losses']:.1g} "
            f"(relative) in {dtype}, the lengths of their steps by {apart['moved']:.1g}."
        )
    return notes


def _memory_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [str(run["clients"]), str(run["tokens"]), _gib(run["peak_bytes"]), _gib(run["training_peak_bytes"])]
        for run in result["runs"]
    ]
    rows.append(["ratio", "", f"{result['ratio']:.2f}", _times(result["training_ratio"])])
    head = ["clients in the round", "tokens", "peak resident, loading included", "peak while training"]
    note = f"{result['model']} in {result['dtype']}, {result['settings']['data']}; waves of the same size."
    return [*_table(head, rows), "", note]


def _layers_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for row in result["contenders"]:
        layers = row["selected_layers"]
        chosen = "all" if layers is None or len(layers) == result["settings"]["layers"] else _numbers(layers)
        spread = f"{min(row['seconds']):.3g}{_DASH}{max(row['seconds']):.3g}"
        rows.append(
            [
                row["name"],
                chosen,
                f"{row['median_seconds']:.3g} ({spread})",
                _times(row["of_fed"]),
                _times(row["of_all"]),
                f"{row['bytes'] / 1e6:.1f} MB",
            ]
        )
    settings = result["settings"]
    head = ["one round", "layers trained", "seconds", "of `fed`", "of `all`", "bytes, up and down"]
    turns = len(result["contenders"][0]["seconds"])
    note = (
        f"{settings['model_name']} in {result['dtype']}, {settings['data_name']}: {settings['clients']} "
        f"clients × {settings['client_batch_per_step']} batches of 2, LoRA r 16 on q and v, "
        f"{settings['layers']} layers. Medians of {turns} turns (smallest{_DASH}largest), ratios within each."
    )
    return [*_table(head, rows), "", note]


def _policies_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, runs in result["runs"].items():
        sent = statistics.mean(run["bytes_up"] + run["bytes_down"] for run in runs)
        rows.append(
            [
                f"`configs/{name}.yaml`",
                _mean(run["val_loss"] for run in runs),
                _percent(run["val_accuracy"] for run in runs),
                _percent(run["answer_accuracy"] for run in runs),
                f"{sent / 1e6:.1f} MB",
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    head = ["run", "validation loss", "token accuracy", "answers right", "bytes, up and down", "seconds"]
    every = [run for runs in result["runs"].values() for run in runs]
    before = {run["seed"]: run["answer_accuracy_before"] for run in every}
    note = (
        f"Means over the seeds {', '.join(map(str, before))} (smallest{_DASH}largest), {every[0]['rounds']} "
        f"rounds each. Answers right before training: {_percent(before.values())}."
    )
    return [*_table(head, rows), "", note]


def _peers_table(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, seconds in sorted(result["seconds"].items()):
        way, dtype = name.split()
        auto = " (`dtype=auto`)" if way == "fedloom" and dtype == result["auto"] else ""
        label = "**fedloom**" if way == "fedloom" else "PEFT, peer by peer"
        spread = f"{min(seconds):.3g}{_DASH}{max(seconds):.3g}"
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
    return [*_table(["one round", "dtype", "seconds"], rows), "", note]


def _scale_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            str(run["peers"]),
            f"{run['seconds']:.3g}",
            f"{1000 * run['mixing_seconds']:.2g}",
            f"{run['mixing_seconds'] / run['seconds']:.2%}",
            _gib(run["training_peak_bytes"]),
        ]
        for run in result["runs"]
    ]
    last = result["runs"][-1]
    note = (
        f"{result['settings']['model']}, r 4, random 4-regular graph, {last['examples']} examples per peer, "
        f"one process. A peer adds {result['bytes_per_added_peer'] / 1e3:.0f} kB; its row has "
        f"{last['row_bytes'] / 1e3:.0f} kB and its moments {last['moment_bytes'] / 1e3:.0f} kB."
    )
    head = ["peers", "seconds per round", "mixing, ms", "share of mixing", "peak resident while training"]
    return [*_table(head, rows), "", note]


def _numbers(layers: list[int]) -> str:
    """``[3, 4, 5, 9]`` as ``3-5, 9``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}{_DASH}{run[-1]}" for run in runs)


def _mean(values: Iterable[float]) -> str:
    every = list(values)
    return f"{statistics.mean(every):.3f} ({min(every):.3f}{_DASH}{max(every):.3f})"


def _percent(values: Iterable[float]) -> str:
    every = [100 * value for value in values]
    return f"{statistics.mean(every):.0f} % ({min(every):.0f}{_DASH}{max(every):.0f})"


def _origin(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}"
    where = f"{machine['gpu']}; {cpu}" if "gpu" in machine else cpu
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [f"{where}. {packages}. {result['date']}, `{result['command']}`."]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"
