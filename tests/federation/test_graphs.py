"""Graphs by name, and the mistakes that names allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.errors import UserError
from fedloom.federation.graphs import named_edges, peer_list
from fedloom.federation.topology import build_topology


def links(name, peers, seed=0):
    """The links as pairs of peers, numbered from 0."""
    return [tuple(link) for link in named_edges(name, peers, seed).tolist()]


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("du14", [2, 2, 3, 2, 2, 2, 1]),
        ("link3", [2] * 7),
        ("link4", [3, 3, 3, 3, 3, 2, 3]),
        ("link5", [4] * 7),
        ("link6", [5, 5, 5, 5, 5, 6, 3]),
        ("link7", [6] * 7),
    ],
)
def test_the_originals_seven_node_graphs_have_their_degrees(name, degrees):
    assert build_topology(name, 7, 0).static.degrees.tolist() == degrees


def test_link3_is_the_ring_and_link7_the_complete_graph():
    assert links("link3", 7) == links("ring", 7)
    assert links("link7", 7) == links("complete", 7)


def test_shapes():
    assert links("ring", 4) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert links("line", 4) == [(0, 1), (1, 2), (2, 3)]
    assert links("star", 4) == [(0, 1), (0, 2), (0, 3)]
    assert links("grid", 6) == [(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5)], "2 x 3, row by row"
    assert links("hypercube", 4) == [(0, 1), (0, 2), (1, 3), (2, 3)], "numbers that differ in one bit"
    assert len(links("exponential", 7)) == 7 * 3, "distances 1, 2 and 4 both ways: 7 = 1 + 2 + 4 has them all"
    assert {abs(i - j) for i, j in links("exponential", 16)} == {1, 2, 4, 8, 16 - 4, 16 - 2, 16 - 1}
    assert build_topology("torus", 12, 0).static.degrees.tolist() == [4] * 12
    assert build_topology("hypercube", 32, 0).static.degrees.tolist() == [5] * 32


@pytest.mark.parametrize("name", ["ring", "line", "star", "complete", "hypercube", "exponential"])
def test_two_peers_have_one_link(name):
    assert links(name, 2) == [(0, 1)]


@settings(deadline=None)
@given(degree=st.integers(1, 11), peers=st.integers(2, 12), seed=st.integers(0, 2**40))
def test_random_regular_gives_every_peer_as_many_links(degree, peers, seed):
    if degree >= peers or degree * peers % 2:
        return
    edges = named_edges(f"random_regular:d={degree}", peers, seed)
    assert np.bincount(edges.ravel(), minlength=peers).tolist() == [degree] * peers


def test_a_random_regular_graph_with_almost_all_links_takes_no_time():
    assert len(links("random_regular:d=56", 60)) == 60 * 56 / 2


@pytest.mark.parametrize("name", ["random_regular:d=3", "erdos_renyi:p=0.5"])
def test_random_graphs_depend_on_the_seed_alone(name):
    np.random.seed(1)
    first = links(name, 20, seed=5)
    np.random.seed(2)
    assert links(name, 20, seed=5) == first != links(name, 20, seed=6)


def test_erdos_renyi_has_its_share_of_links():
    count = np.mean([len(links("erdos_renyi:p=0.3", 40, seed)) for seed in range(20)])
    assert abs(count / (40 * 39 / 2) - 0.3) < 0.02


@pytest.mark.parametrize(
    ("name", "peers", "parts"),
    [
        ("rign", 5, ["rign is not one of du14", "did you mean ring?"]),
        ("Ring", 5, ["Ring is not one of", "random_regular:d=4", "file:PATH", "did you mean ring?"]),
        ("exponental", 5, ["did you mean exponential?"]),
        ("", 5, ["is not one of"]),
        ("ring:k=2", 5, ["ring takes no values; write ring"]),
        ("file", 5, ["needs the path of a graph; write file:PATH"]),
        ("ring", 1, ["num_clients: 1 has no one to mix with; choose at least 2"]),
        ("random_pairs", 0, ["num_clients: 0", "at least 2"]),
        ("link5", 10, ["link5 is a graph of 7 peers, but num_clients is 10", "--num_clients 7", "ring"]),
        ("complete", 5000, ["complete has 12,497,500 links", "random_regular:d=4"]),
        ("erdos_renyi:p=0.9", 6000, ["links", "random_regular:d=4"]),
        ("grid", 13, ["num_clients is 13", "at least 2 of each", "--num_clients 12 or --num_clients 14"]),
        ("grid", 2, ["choose --num_clients 4"]),
        ("torus", 14, ["at least 3 of each", "--num_clients 12 or --num_clients 15"]),
        ("torus", 2, ["choose --num_clients 9"]),
        ("hypercube", 12, ["a power of two", "--num_clients 8 or --num_clients 16"]),
        ("one_peer_exponential", 3, ["a power of two", "--num_clients 2 or --num_clients 4"]),
        (
            "random_regular",
            8,
            ["takes d and nothing else, a whole number of at least 1", "write it like random_regular:d=4"],
        ),
        ("random_regular:k=3", 8, ["takes d and nothing else", "write it like random_regular:d=4"]),
        ("random_regular:d=4,d=6", 8, ["takes d and nothing else"]),
        ("random_regular:d=2.5", 8, ["d 2.5 is not a whole number of at least 1"]),
        ("random_regular:d=inf", 8, ["d inf is not a whole number"]),
        ("random_regular:d=8", 8, ["8 peers have 7 links each at most", "choose a smaller d"]),
        ("random_regular:d=3", 7, ["7 peers cannot have 3 links each", "make d or num_clients even"]),
        ("random_regular:d=1", 4, ["2 parts that never hear of each other", "raise d", "--seed"]),
        (
            "erdos_renyi",
            8,
            ["takes p and nothing else, a number above 0 and at most 1", "write it like erdos_renyi:p=0.3"],
        ),
        ("erdos_renyi:p=x", 8, ["p x is not a number above 0"]),
        ("erdos_renyi:p=0", 8, ["p 0 is not a number above 0 and at most 1"]),
        ("erdos_renyi:p=1e-300", 8, ["8 parts", "raise p"]),
        ("erdos_renyi:p=1e-9", 8, ["8 parts", "peers 1; 2; 3; 4; and 4 more", "raise p", "another --seed"]),
    ],
)
def test_a_mistake_is_told_with_the_rule_and_the_fix(name, peers, parts):
    with pytest.raises(UserError) as error:
        build_topology(name, peers, 0)
    for part in ["topology" if peers > 1 else "num_clients", *parts]:
        assert part in str(error.value)


def test_a_list_of_peers_counts_from_1_and_is_cut_short():
    assert peer_list([4, 0, 1, 2]) == "1-3, 5"
    assert peer_list(range(0, 40, 2)) == "1, 3, 5, 7, 9, 11, ... (20 in all)"
