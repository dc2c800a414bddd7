"""Graphs by name: which peers are linked.

A name is `NAME` or `NAME:key=value,...`. Peers are numbered from 0 in arrays, and from 1 wherever people read
or write them: in files, messages, tables and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from jaxtyping import Int64

from fedloom.data.randomness import derive_seed
from fedloom.errors import UserError
from fedloom.options.synonyms import did_you_mean

Edges = Int64[np.ndarray, "edges 2"]
"""Links, each once, the lower peer first, in ascending order."""

Links = Iterable[Sequence[int]] | Edges
"""Links in any order and direction."""

SEVEN = {
    "du14": "12 13 23 34 45 56 67",
    "link3": "12 23 34 45 56 67 17",
    "link4": "12 13 17 23 24 34 45 56 57 67",
    "link5": "12 13 16 17 23 24 27 34 35 45 46 56 57 67",
    "link6": "12 13 14 16 17 23 24 25 26 34 35 36 45 46 56 57 67",
    "link7": "12 13 14 15 16 17 23 24 25 26 27 34 35 36 37 45 46 47 56 57 67",
}
"""The seven-node graphs of the original DFL-LoRA: two digits are a link between two peers, 1 to 7. Their
degrees are uneven there too."""

MOST_LINKS = 4096 * 4095 // 2
"""Of a graph by name: all pairs of 4,096 peers, which take some gigabytes."""

_MOST_PIECES = 6


def sides(peers: int) -> tuple[int, int]:
    """Rows and columns, rows <= columns, of the rectangle of `peers` that is nearest to a square."""
    rows = max(side for side in range(1, math.isqrt(peers) + 1) if peers % side == 0)
    return rows, peers // rows


def _grid(peers: int, periodic: bool) -> Links:
    grid = nx.grid_2d_graph(*sides(peers), periodic=periodic)
    return nx.convert_node_labels_to_integers(grid, ordering="sorted").edges


def _hypercube(peers: int) -> Links:
    cube = nx.hypercube_graph(peers.bit_length() - 1)
    return nx.convert_node_labels_to_integers(cube, ordering="sorted").edges


def _exponential(peers: int) -> Links:
    return nx.circulant_graph(peers, [2**j for j in range((peers - 1).bit_length())]).edges


def is_power_of_two(peers: int) -> bool:
    """Whether `peers` is 1, 2, 4, 8, ..."""
    return peers & (peers - 1) == 0


@dataclass(frozen=True)
class _Plain:
    """A graph that the number of peers decides, and which numbers it exists for."""

    build: Callable[[int], Links]
    exists: Callable[[int], bool] = lambda peers: True
    needs: str = ""


_PLAIN = {
    "ring": _Plain(lambda peers: nx.cycle_graph(peers).edges),
    # A million links take networkx seconds.
    "complete": _Plain(lambda peers: np.stack(np.triu_indices(peers, 1), axis=1)),
    "star": _Plain(lambda peers: nx.star_graph(peers - 1).edges),
    "line": _Plain(lambda peers: nx.path_graph(peers).edges),
    "grid": _Plain(
        lambda peers: _grid(peers, periodic=False),
        lambda peers: sides(peers)[0] >= 2,
        "rows x columns with at least 2 of each",
    ),
    "torus": _Plain(
        lambda peers: _grid(peers, periodic=True),
        lambda peers: sides(peers)[0] >= 3,
        "rows x columns with at least 3 of each, else links would double",
    ),
    "hypercube": _Plain(_hypercube, is_power_of_two, "a power of two"),
    "exponential": _Plain(_exponential),
}
_KEYS = {"random_regular": "d", "erdos_renyi": "p"}
_EXAMPLES = {"random_regular": "random_regular:d=4", "erdos_renyi": "erdos_renyi:p=0.3"}
VARYING = ("one_peer_exponential", "random_pairs")
KINDS = (*SEVEN, *_PLAIN, *_EXAMPLES, *VARYING, "file")


def parse_name(name: str) -> tuple[str, str]:
    """Split `NAME:rest` into a known name and the rest; the rest is empty unless the name takes something.

    Raises:
        UserError: The name is unknown, or takes nothing and got something, or the other way round.
    """
    kind, _, rest = (part.strip() for part in name.partition(":"))
    if kind not in KINDS:
        shown = [_EXAMPLES.get(known, "file:PATH" if known == "file" else known) for known in KINDS]
        nearest = did_you_mean(kind, KINDS)
        raise UserError(f"topology: {name} is not one of {', '.join(shown)}{nearest}")
    if kind == "file" and not rest:
        raise UserError("topology: file needs the path of a graph; write file:PATH")
    if rest and kind != "file" and kind not in _EXAMPLES:
        raise UserError(f"topology: {name}: {kind} takes no values; write {kind}")
    return kind, rest


def named_edges(name: str, peers: int, seed: int) -> Edges:
    """The links of a static graph by its name, not of `file:PATH`.

        du14, link3 ... link7   the original's, for 7 peers
        ring, line, star, complete
        grid, torus             rows x columns, as square as `peers` allows
        hypercube               peers whose numbers differ in one bit
        exponential             i and i + 2^j mod N: the static exponential graph, links taken both ways
        random_regular:d=D      D links each; any such graph, by the seed
        erdos_renyi:p=P         each pair with probability P, by the seed

    It need not be connected, see `check_connected`.

    Args:
        name: As above.
        peers: How many, at least 2.
        seed: Of the run; of use to the random ones alone.

    Raises:
        UserError: The name is unknown, its values are wrong, or no such graph has so many peers.
    """
    kind, rest = parse_name(name)
    if kind in SEVEN:
        return sorted_edges(_seven(kind, peers))
    if kind in _PLAIN:
        plain = _PLAIN[kind]
        if kind == "complete":
            _check_links(name, peers * (peers - 1) // 2)
        if not plain.exists(peers):
            raise UserError(f"topology: {kind}: {fitting(peers, plain.exists, plain.needs)}")
        return sorted_edges(plain.build(peers))
    drawn_by = derive_seed(seed, "topology")
    if kind == "random_regular":
        return sorted_edges(_random_regular(name, rest, peers, drawn_by))
    assert kind == "erdos_renyi", f"{kind} is not the name of a static graph"
    probability = _value(name, kind, rest, lambda p: 0 < p <= 1, "a number above 0 and at most 1")
    if 1 - probability == 1:  # networkx would divide by log(1 - p)
        return sorted_edges([])
    _check_links(name, round(probability * peers * (peers - 1) / 2))
    return sorted_edges(nx.fast_gnp_random_graph(peers, probability, seed=drawn_by).edges)


def _check_links(name: str, links: int) -> None:
    if links > MOST_LINKS:
        raise UserError(
            f"topology: {name} has {links:,} links for so many peers, and the most are {MOST_LINKS:,}; "
            "choose a sparser graph, such as random_regular:d=4, or a smaller num_clients"
        )


def sorted_edges(links: Links) -> Edges:
    """Links in their one order, each once, whatever order and direction they came in."""
    array = links if isinstance(links, np.ndarray) else np.array(list(links), dtype=np.int64)
    ends = np.sort(array.reshape(-1, 2), axis=1)
    size = int(ends.max(initial=0)) + 1
    return np.stack(np.divmod(np.unique(ends[:, 0] * size + ends[:, 1]), size), axis=1)


def _seven(kind: str, peers: int) -> Links:
    if peers != 7:
        raise UserError(
            f"topology: {kind} is a graph of 7 peers, but num_clients is {peers}; choose --num_clients 7, or "
            "a graph for any number, such as ring or exponential"
        )
    return [(int(link[0]) - 1, int(link[1]) - 1) for link in SEVEN[kind].split()]


def fitting(peers: int, exists: Callable[[int], bool], needs: str) -> str:
    """Say that a graph does not exist for `peers`, what it needs, and the nearest numbers that would do."""
    below = next((n for n in range(peers - 1, 1, -1) if exists(n)), None)
    above = next(n for n in range(peers + 1, 2 * peers + 9) if exists(n))
    choices = " or ".join(f"--num_clients {n}" for n in (below, above) if n is not None)
    return f"num_clients is {peers}, but must be {needs}; choose {choices}"


def _random_regular(name: str, rest: str, peers: int, drawn_by: int) -> Links:
    rule = "a whole number of at least 1"
    degree = int(_value(name, "random_regular", rest, lambda d: d >= 1 and d.is_integer(), rule))
    if degree >= peers:
        raise UserError(
            f"topology: {name}: {peers} peers have {peers - 1} links each at most; choose a smaller d"
        )
    if degree * peers % 2:
        raise UserError(
            f"topology: {name}: {peers} peers cannot have {degree} links each, since a link has two ends and "
            f"{peers} x {degree} is odd; make d or num_clients even"
        )
    _check_links(name, degree * peers // 2)
    # Dense ones are drawn by the links that they lack: drawing them link by link seldom succeeds.
    if degree > peers // 2:
        return nx.complement(nx.random_regular_graph(peers - 1 - degree, peers, seed=drawn_by)).edges
    return nx.random_regular_graph(degree, peers, seed=drawn_by).edges


def _value(name: str, kind: str, rest: str, allows: Callable[[float], bool], rule: str) -> float:
    """The one value of a random graph, from `key=value`."""
    example, wanted = _EXAMPLES[kind], _KEYS[kind]
    items = [item.partition("=") for item in rest.split(",")]
    if [key.strip() for key, _, _ in items] != [wanted]:
        raise UserError(
            f"topology: {name}: {kind} takes {wanted} and nothing else, {rule}; write it like {example}"
        )
    text = items[0][2].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allows(value):
        raise UserError(f"topology: {name}: {wanted} {text} is not {rule}; write it like {example}")
    return value


def check_connected(name: str, peers: int, edges: Edges) -> None:
    """Judge whether news of every peer reaches every other.

    Raises:
        UserError: The graph falls into parts, and which peers they hold.
    """
    # With so many links any two peers share a neighbour; to search a dense graph would take seconds.
    if 2 * np.bincount(edges.ravel(), minlength=peers).min() >= peers - 1:
        return
    graph = nx.empty_graph(peers)
    graph.add_edges_from(edges.tolist())
    parts = sorted(nx.connected_components(graph), key=min)
    if len(parts) == 1:
        return
    shown = "; ".join(peer_list(part) for part in parts[:4])
    more = f"; and {len(parts) - 4} more" if len(parts) > 4 else ""
    key = _KEYS.get(parse_name(name)[0])
    fix = f"raise {key}, or take another --seed" if key else "add links between them"
    raise UserError(
        f"topology: {name} falls into {len(parts)} parts that never hear of each other: peers "
        f"{shown}{more}; {fix}"
    )


def peer_list(peers: Iterable[int]) -> str:
    """Peers as people read them, numbered from 1: `1-3, 7`; a long list is cut short and counted."""
    numbers = sorted(peer + 1 for peer in peers)
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    pieces = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    if len(pieces) <= _MOST_PIECES:
        return ", ".join(pieces)
    return f"{', '.join(pieces[:_MOST_PIECES])}, ... ({len(numbers)} in all)"
