"""Results as pictures for the docs.

python benchmarks/figures.py        # draw all of them again, into docs/figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cells import centre, geometric
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables_drift import pairs_of

HERE = Path(__file__).parent
# Okabe and Ito, 2008: colours that colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7")
LINES = {"LoRA": "-", "DFL-LoRA": "--"}

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def consensus(result: dict[str, Any]) -> Figure:
    """Consensus error over rounds, and the accuracy after the last one, for each graph."""
    cases: Runs = {}
    for runs in result["runs"].values():
        for run in runs:
            cases.setdefault((run["graph"], run["training_type"]), []).append(run)
    graphs = sorted({graph for graph, _ in cases})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(3, 2), layout="constrained")
    for (graph, way), runs in sorted(cases.items()):
        errors = np.array([run["consensus_error"] for run in runs])
        rounds = np.arange(1, errors.shape[1] + 1)
        colour = COLOURS[graphs.index(graph) % len(COLOURS)]
        left.plot(rounds, errors.mean(0), LINES[way], color=colour, label=f"{graph}, {way}", linewidth=1.4)
        left.fill_between(rounds, errors.min(0), errors.max(0), color=colour, alpha=0.12, linewidth=0)
    left.set(xlabel="round", ylabel="consensus error after mixing", ylim=(0, None))
    left.legend(fontsize=7, ncols=len(graphs), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _accuracies(right, cases, graphs)
    right.legend(fontsize=7, frameon=False)
    return figure


def _accuracies(axes: Axes, cases: Runs, graphs: list[str]) -> None:
    for shift, (way, marker) in zip((-0.12, 0.12), (("LoRA", "o"), ("DFL-LoRA", "s")), strict=True):
        for place, graph in enumerate(graphs):
            runs = cases.get((graph, way), [])
            values = [100 * run["evaluations"][-1]["val_accuracy"] for run in runs]
            filled = COLOURS[place % len(COLOURS)] if way == "LoRA" else "none"
            label = way if place == 0 else None
            points = [place + shift] * len(values)
            colour = COLOURS[place % len(COLOURS)]
            axes.scatter(points, values, 26, marker=marker, facecolors=filled, edgecolors=colour, label=label)
    axes.set_xticks(range(len(graphs)), graphs)
    axes.set(ylabel="accuracy, mean of peers, %")


def drift(result: dict[str, Any]) -> Figure:
    """How many times as large the consensus error is with A trained, over what A may do and what it does."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    error, relative = "consensus_error", "consensus_error_relative"
    reach, growth = "lr · K / rms(A₀)", "‖A_i‖ / ‖A₀‖"
    shown = ((error, reach), (error, growth), (relative, growth))
    for axes, (name, over) in zip(panels, shown, strict=True):
        for colour, pairs in zip(COLOURS, pairs_of(result), strict=False):
            if over == reach:
                rounds = list(range(1, len(pairs.both[0][name]) + 1))
                x = [round_ * pairs.settings["local_steps"] * pairs.step for round_ in rounds]
            else:
                rounds = [int(round_) for round_ in pairs.both[0]["factors"]]
                x = [pairs.mean_factor("grown", round_) for round_ in rounds]
            curve = np.array([geometric(pairs.ratios(name, round_)) for round_ in rounds])
            label = f"lr {pairs.settings['lr']:g}, n = {len(pairs.both)}"
            style = "-" if over == reach else "o-"
            axes.plot(x, curve[:, 0], style, color=colour, label=label, linewidth=1.4, markersize=3)
            axes.fill_between(x, curve[:, 1], curve[:, 2], color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1, color="black", linestyle=":", linewidth=0.8)
        if name == error:
            axes.axhspan(6.5, 8, color="0.85", linewidth=0)
        title = "consensus error" if name == error else "relative to the mean product"
        axes.set(xscale="log", yscale="log", xlabel=over, title=title)
        axes.set_yticks([1, 1.5, 2, 3, 5, 8], ["1", "1.5", "2", "3", "5", "8"])
        if over == growth:
            axes.set_xticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
        axes.minorticks_off()
    panels[0].set(ylabel="LoRA's by DFL-LoRA's")
    panels[0].legend(fontsize=7, frameon=False, loc="center left")
    return figure


def over_rounds(result: dict[str, Any]) -> Figure:
    """Both consensus errors over rounds: a thin line per seed, the geometric mean over seeds thick."""
    (pairs,) = pairs_of(result)
    ways, rounds = {"LoRA": pairs.both, "DFL-LoRA": pairs.frozen}, range(1, result["rounds"] + 1)
    step = 5 if len(rounds) <= 40 else 32
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    titles = {
        "consensus_error": "consensus error after mixing",
        "consensus_error_relative": "relative to the mean product",
    }
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for colour, (way, runs) in zip(COLOURS, ways.items(), strict=False):
            errors = np.array([run[name] for run in runs])
            axes.plot(rounds, errors.T, LINES[way], color=colour, linewidth=0.6, alpha=0.6)
            mean = np.exp(np.log(errors).mean(0))
            axes.plot(rounds, mean, LINES[way], color=colour, linewidth=2.2, label=f"{way}, n = {len(runs)}")
        axes.set(xlabel="round", title=title, ylim=(0, None), xticks=range(0, len(rounds) + 1, step))
    panels[0].legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def bytes_saved(result: dict[str, Any]) -> Figure:
    """What each way of sending less costs in accuracy, over the share of the bytes that it sends."""
    rows = result["rows"]
    columns = -(-len(rows) // 2)
    figure, panels = plt.subplots(
        2, columns, figsize=(9, 5.6), sharex=True, sharey=True, layout="constrained"
    )
    for axes, row in zip(panels.flat, rows, strict=False):
        for place, way in enumerate(result["ways"]):
            if (found := row["ways"].get(way)) is None:
                continue
            mean, low, high = centre(100 * one for one in found["differences"].values())
            marks = {"color": COLOURS[place % len(COLOURS)], "marker": "osD^vP*X"[place % 8], "markersize": 5}
            bar = [[mean - low], [high - mean]]
            axes.errorbar(found["share"], mean, bar, linestyle="", linewidth=1, label=way, **marks)
        axes.axhline(0, color="black", linestyle=":", linewidth=0.8)
        axes.axvline(0.25, color="0.8", linewidth=0.8, zorder=0)
        axes.set_title(row["comparison"], fontsize=8)
    figure.supxlabel(f"bytes, as a share of what {result['against']} sends", fontsize=9)
    figure.supylabel("accuracy, points more than it", fontsize=9)
    handles, names = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, frameon=False, ncols=3, loc="outside upper center")
    return figure


def peers_scale(result: dict[str, Any]) -> Figure:
    """Time of a round and peak memory over the number of peers."""
    peers = [run["peers"] for run in result["runs"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
    left.loglog(peers, [run["seconds"] for run in result["runs"]], "o-", color=COLOURS[0], label="round")
    mixing = [run["mixing_seconds"] for run in result["runs"]]
    left.loglog(peers, mixing, "s--", color=COLOURS[3], label="of it mixing")
    left.set(xlabel="peers", ylabel="seconds")
    left.legend(fontsize=8, frameon=False)
    right.plot(peers, [run["training_peak_bytes"] / 2**30 for run in result["runs"]], "o-", color=COLOURS[0])
    right.set(xlabel="peers", ylabel="peak resident memory, GiB", xscale="log", ylim=(0, None))
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "consensus": consensus,
    "drift": drift,
    "priority": bytes_saved,
    "peers-scale": peers_scale,
    "sst2-whole-epochs": over_rounds,
    "sst2-256-rounds": over_rounds,
}


def draw(results: Path, out: Path) -> list[Path]:
    """Draw every figure whose result is there. Returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure_of in FIGURES.items():
        if (results / f"{name}.json").is_file():
            figure = figure_of(json.loads((results / f"{name}.json").read_text(encoding="utf-8")))
            drawn.append(out / f"{name}.svg")
            # Nothing in the file says when it was drawn: the same result gives the same file.
            with plt.rc_context({"svg.hashsalt": name}):
                figure.savefig(drawn[-1], metadata={"Date": None})
            plt.close(figure)
    return drawn


def main(arguments: list[str] | None = None) -> int:
    """Draw. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "figures")
    options = parser.parse_args(arguments)
    for path in draw(options.results, options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
