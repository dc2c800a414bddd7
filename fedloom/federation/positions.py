"""Where each peer of a graph stands in a picture."""

from __future__ import annotations

import networkx as nx
import numpy as np
from jaxtyping import Float64

from fedloom.federation.graphs import Edges, parse_name, sides
from fedloom.federation.topology import Topology

_MOST_SPRINGS = 300


def positions(topology: Topology, edges: Edges, seed: int) -> Float64[np.ndarray, "peers 2"]:
    """Place the peers on a circle, unless the graph has a clearer shape.

    Args:
        topology: The graph.
        edges: All links that will be drawn.
        seed: Of a layout that is found by chance.
    """
    kind, _ = parse_name(topology.name)
    graph = nx.empty_graph(topology.peers)
    graph.add_edges_from(edges.tolist())
    if kind == "star":
        places = nx.shell_layout(graph, [[0], list(range(1, topology.peers))])
    elif kind == "line":
        places = nx.spiral_layout(graph, equidistant=True)
    elif kind == "grid":
        _, columns = sides(topology.peers)
        places = {peer: np.array([peer % columns, -(peer // columns)]) for peer in graph}
    elif kind in ("torus", "hypercube", "file") and topology.peers <= _MOST_SPRINGS:
        places = nx.spring_layout(graph, seed=seed % 2**32)
    else:
        places = nx.circular_layout(graph)
    return np.array([places[peer] for peer in range(topology.peers)], dtype=np.float64)
