"""From a result of `round.py` to Markdown, and into the pages that show it.

A page says ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->``; what stands between is made of
``benchmarks/results/NAME.json``, so no number in it was typed by hand:

    python benchmarks/render.py README.md          # fill the page's tables again
    python benchmarks/render.py --check README.md  # exit status 1 where the page says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_SECTION = re.compile(r"(<!-- benchmark:([\w.-]+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
_DASH = "–"


def as_markdown(result: dict[str, Any]) -> str:
    """The table of a result, with the machine, the versions and the date below it."""
    table = _memory_table(result) if result["kind"] == "memory" else _round_table(result)
    return "\n".join([*table, "", *_origin(result)]) + "\n"


def fill(page: str, results: Path) -> str:
    """The page with all its tables made anew.

    Raises:
        FileNotFoundError: the page names a result that is not there.
    """

    def section(match: re.Match[str]) -> str:
        result = json.loads((results / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + as_markdown(result) + match[3]

    return _SECTION.sub(section, page)


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


def main(arguments: list[str] | None = None) -> int:
    """Fill or check pages. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fill the benchmark tables of Markdown pages.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where a page is not up to date"
    )
    options = parser.parse_args(arguments)
    stale = []
    for page in options.pages:
        before = page.read_text(encoding="utf-8")
        after = fill(before, options.results)
        if options.check and after != before:
            stale.append(str(page))
        elif after != before:
            page.write_text(after, encoding="utf-8")
    if stale:
        print(f"not what {options.results} says: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
