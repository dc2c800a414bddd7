"""`fedloom topology`: a graph in numbers, its mixing matrix, and a picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from fedloom.errors import UserError, plain_console, shown
from fedloom.federation.positions import positions
from fedloom.federation.topology import (
    DENSE_LIMIT,
    Topology,
    build_topology,
    bytes_per_round,
    mixing,
    spectral_gap,
)
from fedloom.runs.files import check_output, write_atomically, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")
_MOST_DEGREES = 32
_MOST_COLUMNS = 8
_MOST_LABELS = 64
_RANDOM_ROUNDS = 3
_NEVER = 1e-12


def run_topology(
    *, name: str, num_clients: int, seed: int, adapter_bytes: int | None, output: str | None
) -> None:
    """Print a graph's facts and, for up to 8 peers, its mixing matrix; draw it if asked.

    Of a graph that varies, degrees, links and matrix are those of its first round.

    Args:
        name: As `build_topology` takes it.
        num_clients: How many peers.
        seed: Of the random graphs, and of the picture's layout.
        adapter_bytes: Bytes of one peer's adapter; None leaves out bytes per round.
        output: Where to draw the graph, a .png or .svg file; None does not draw.

    Raises:
        UserError: The graph cannot be made, or not be drawn there.
    """
    if output is not None:
        _check_drawable(Path(output))
    topology = build_topology(name, num_clients, seed)
    gap = spectral_gap(topology)
    console = plain_console()
    console.print(_facts(topology, seed, gap, adapter_bytes))
    if num_clients <= _MOST_COLUMNS:
        console.print(_matrix(topology, seed))
    if output is not None:
        _save(draw(topology, seed, gap), Path(output))
        console.print(f"Drawn to {output}", soft_wrap=True)


def _facts(topology: Topology, seed: int, gap: float | None, adapter_bytes: int | None) -> Table:
    first = mixing(topology, 0, seed)
    degrees = first.degrees
    in_round = " in a round" if topology.varies else ""
    table = Table("", shown(topology.name), title=f"{topology.peers} peers")
    table.add_row("links" + in_round, f"{len(first.edges)}")
    even = degrees.min() == degrees.max()
    spread = f"{degrees.min()} to {degrees.max()}, mean {degrees.mean():.3g}"
    table.add_row(f"links of a peer{in_round}", f"{degrees[0]}" if even else spread)
    if topology.peers <= _MOST_DEGREES and not even:
        table.add_row("peer by peer", " ".join(map(str, degrees)))
    table.add_row("spectral gap" + (" of the mean matrix" if topology.varies else ""), _gap_text(gap))
    if topology.exact_after is not None:
        table.add_row("exact mean after", f"{topology.exact_after} rounds")
    table.add_row("adapters sent per round", f"{first.directed_edges}")
    if adapter_bytes is not None:
        sent = bytes_per_round(adapter_bytes, first.directed_edges)
        table.add_row("bytes sent per round", f"{sent} ({decimal(sent)})")
    return table


def _gap_text(gap: float | None) -> str:
    if gap is None:
        return f"not computed for more than {DENSE_LIMIT} peers"
    return f"{gap:.4g}" if gap > _NEVER else "0: these peers never agree"


def _matrix(topology: Topology, seed: int) -> Table:
    title = "mixing matrix" + (" of the first round" if topology.varies else "")
    table = Table("", *(str(peer + 1) for peer in range(topology.peers)), title=title)
    for peer, row in enumerate(mixing(topology, 0, seed).dense()):
        table.add_row(str(peer + 1), *(f"{weight:.3f}" if weight else "·" for weight in row))
    return table


def draw(topology: Topology, seed: int, gap: float | None) -> Figure:
    """Draw the graph; the links of a graph that varies are coloured by their round.

    Of `one_peer_exponential` all rounds that differ are drawn, of `random_pairs` the first three.

    Args:
        topology: The graph.
        seed: Of the graph and the layout.
        gap: Its spectral gap, for the title.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    rounds = (topology.exact_after or _RANDOM_ROUNDS) if topology.varies else 1
    edges = [mixing(topology, number, seed).edges for number in range(rounds)]
    at = positions(topology, np.concatenate(edges), seed)
    size = 7.0
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Viridis rises in lightness, so that it reads in grey and by colour-blind eyes too; but not its end.
    colours = colormaps["viridis"](np.linspace(0, 0.9, rounds)) if topology.varies else ["#7a7a7a"]
    for number, (links, colour) in enumerate(zip(edges, colours, strict=True)):
        width = float(np.clip(300 / max(1, len(links)), 0.15, 1.6))
        axes.add_collection(
            LineCollection(list(at[links]), colors=[colour], linewidths=width, label=f"round {number + 1}")
        )
    labelled = topology.peers <= _MOST_LABELS
    dots = 260 if labelled else max(4, 12000 / topology.peers)
    axes.scatter(at[:, 0], at[:, 1], s=dots, c="#0072b2", linewidths=0, zorder=2)
    if labelled:
        for peer, (x, y) in enumerate(at):
            axes.text(x, y, str(peer + 1), color="white", fontsize=8, ha="center", va="center", zorder=3)
    shown = "" if gap is None else f", spectral gap {gap:.3g}"
    axes.set_title(f"{topology.name}: {topology.peers} peers{shown}", parse_math=False)
    axes.set_aspect("equal")
    axes.margins(0.08)
    axes.axis("off")
    if topology.varies:
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _check_drawable(path: Path) -> None:
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"output: {path} is not a .png or .svg file; choose a name that ends so")
    check_output(path, "graph.svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            f"output: {path} cannot be drawn, matplotlib is missing; pip install 'fedloom[plots]'"
        ) from None


def _save(figure: Figure, path: Path) -> None:
    drawn, then = BytesIO(), "start again, or choose another place"
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    with writing(path, then):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, drawn.getvalue(), then=then)
