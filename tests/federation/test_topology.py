"""Graphs, their mixing matrices, and what drops out of them."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.federation.graphs import SEVEN, sides
from fedloom.federation.matrix import RoundMixing, check_mixing
from fedloom.federation.topology import build_topology, bytes_per_round, mixing, spectral_gap


def matrix(name, peers, seed=0, round_=0):
    return mixing(build_topology(name, peers, seed), round_, seed).dense()


def graphs_of_any_size():
    """(name, peers): every kind of graph, with the numbers of peers that it exists for."""
    some = st.integers(2, 40)
    of_any_number = st.sampled_from(
        ["ring", "complete", "star", "line", "exponential", "random_pairs", "erdos_renyi:p=1"]
    )
    power = st.integers(1, 5).map(lambda bits: 2**bits)
    return st.one_of(
        st.tuples(of_any_number, some),
        st.tuples(st.sampled_from(sorted(SEVEN)), st.just(7)),
        st.tuples(st.just("grid"), some.filter(lambda n: sides(n)[0] >= 2)),
        st.tuples(st.just("torus"), some.filter(lambda n: sides(n)[0] >= 3)),
        st.tuples(st.sampled_from(["hypercube", "one_peer_exponential"]), power),
        st.tuples(st.just("random_regular:d=4"), st.integers(5, 40)),
        st.tuples(st.just("erdos_renyi:p=0.9"), st.integers(12, 40)),
    )


probabilities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


# The matrix


@settings(deadline=None)
@given(graph=graphs_of_any_size(), seed=st.integers(0, 99), round_=st.integers(0, 99))
def test_every_matrix_is_symmetric_not_negative_and_doubly_stochastic(graph, seed, round_):
    whole = mixing(build_topology(*graph, seed), round_, seed)
    check_mixing(whole)
    w = whole.dense()
    assert (w == w.T).all() and (w >= 0).all()
    assert np.abs(w.sum(0) - 1).max() <= 1e-12 and np.abs(w.sum(1) - 1).max() <= 1e-12


def test_metropolis_weights():
    expected = np.array([[3, 1, 0, 0], [1, 1, 1, 1], [0, 1, 3, 0], [0, 1, 0, 3]]) / 4
    order = [1, 0, 2, 3]  # the star's hub is its first peer
    np.testing.assert_allclose(matrix("star", 4)[np.ix_(order, order)], expected)


@pytest.mark.parametrize("peers", [2, 3, 10, 64])
def test_on_the_complete_graph_everyone_gets_the_mean_at_once(peers):
    np.testing.assert_allclose(matrix("complete", peers), np.full((peers, peers), 1 / peers), atol=1e-15)


def test_the_sparse_matrix_is_the_dense_one():
    whole = mixing(build_topology("du14", 7, 0), 0, 0)
    sparse = whole.sparse()
    assert sparse.layout == torch.sparse_csr and sparse.dtype == torch.float64
    assert (sparse.to_dense().numpy() == whole.dense()).all()
    bank = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(sparse @ bank, torch.from_numpy(whole.dense()) @ bank)


@pytest.mark.parametrize(("name", "layout"), [("complete", torch.strided), ("ring", torch.sparse_csr)])
def test_as_a_tensor_it_is_sparse_only_where_that_pays(name, layout):
    whole = mixing(build_topology(name, 100, 0), 0, 0)
    assert whole.tensor().layout == layout and whole.tensor().dtype == torch.float64
    assert (whole.tensor().to_dense().numpy() == whole.dense()).all()


def test_a_static_graph_without_faults_has_one_matrix_that_is_made_once():
    ring = build_topology("ring", 5, 0)
    assert mixing(ring, 0, 1) is mixing(ring, 7, 1) and not ring.varies


def test_bytes_are_an_adapter_in_each_direction_of_each_link():
    whole = mixing(build_topology("ring", 5, 0), 0, 0)
    assert whole.directed_edges == 10 and bytes_per_round(1000, whole.directed_edges) == 10_000


@pytest.mark.parametrize("name", ["exponential", "complete", "random_pairs"])
def test_a_thousand_peers_are_cheap(name):
    began = time.perf_counter()
    topology = build_topology(name, 1000, 0)
    for round_ in range(3):
        faulty = mixing(topology, round_, 0, drop_peer=0.1, drop_link=0.1)
        check_mixing(faulty)
        faulty.sparse()
    assert time.perf_counter() - began < 5


# What drops out


@settings(deadline=None)
@given(
    graph=graphs_of_any_size(),
    seed=st.integers(0, 99),
    round_=st.integers(0, 99),
    drop_peer=probabilities,
    drop_link=probabilities,
)
def test_mixing_keeps_the_mean_whatever_drops_out(graph, seed, round_, drop_peer, drop_link):
    faulty = mixing(build_topology(*graph, seed), round_, seed, drop_peer, drop_link)
    check_mixing(faulty)
    x = np.random.default_rng(seed).normal(size=(graph[1], 3))
    np.testing.assert_allclose((faulty.dense() @ x).mean(0), x.mean(0), atol=1e-13)


@settings(deadline=None)
@given(graph=graphs_of_any_size(), seed=st.integers(0, 99), drop_peer=probabilities, drop_link=probabilities)
def test_a_dropped_peer_keeps_what_it_has_and_gives_nothing(graph, seed, drop_peer, drop_link):
    topology = build_topology(*graph, seed)
    whole, faulty = mixing(topology, 3, seed), mixing(topology, 3, seed, drop_peer, drop_link)
    w, identity = faulty.dense(), np.eye(topology.peers)
    out = ~faulty.active
    assert (w[out] == identity[out]).all() and (w[:, out] == identity[:, out]).all()
    off = ~np.eye(topology.peers, dtype=bool)
    assert ((w == whole.dense()) | (w == 0))[off].all(), "a link is as it was, or out at both ends"
    assert out.all() or drop_peer < 1
    assert not out.any() or drop_peer > 0


def test_a_dropped_links_weight_goes_back_to_both_ends():
    ring = build_topology("ring", 6, 0)
    whole, faulty = mixing(ring, 2, 0), mixing(ring, 2, 0, drop_link=0.4)
    gone = {tuple(e) for e in whole.edges.tolist()} - {tuple(e) for e in faulty.edges.tolist()}
    assert 0 < len(gone) < 6
    lost = np.bincount(np.array(sorted(gone)).ravel(), minlength=6)
    np.testing.assert_allclose(faulty.own, 1 / 3 + lost / 3)


@pytest.mark.parametrize("drops", [{"drop_peer": 0.3}, {"drop_link": 0.3}])
def test_what_drops_out_is_a_function_of_seed_and_round(drops):
    graph = build_topology("complete", 12, 0)

    def of(round_, seed):
        faulty = mixing(graph, round_, seed, **drops)
        return faulty.active.tolist(), faulty.edges.tolist()

    assert of(1, 1) == of(1, 1)
    assert of(1, 1) != of(2, 1) and of(1, 1) != of(1, 2)


def test_what_drops_out_does_so_at_a_higher_probability_too():
    graph = build_topology("complete", 12, 0)
    rounds = [mixing(graph, 5, 0, p, p) for p in (0.1, 0.3, 0.6)]
    kept = [{tuple(e) for e in faulty.edges.tolist()} for faulty in rounds]
    assert kept[0] > kept[1] > kept[2]


def test_drops_are_as_frequent_as_asked():
    graph = build_topology("ring", 50, 0)
    active = np.mean([mixing(graph, round_, 0, drop_peer=0.2).active for round_ in range(100)])
    kept = np.mean([len(mixing(graph, round_, 0, drop_link=0.2).edges) / 50 for round_ in range(100)])
    assert abs(active - 0.8) < 0.02 and abs(kept - 0.8) < 0.02


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_a_probability_out_of_range(wrong):
    graph = build_topology("ring", 3, 0)
    with pytest.raises(ValueError, match=r"drop_link .* must be a probability"):
        mixing(graph, 0, 0, drop_link=wrong)
    with pytest.raises(ValueError, match=r"drop_peer .* must be a probability"):
        mixing(graph, 0, 0, drop_peer=wrong)


# Judging a matrix


def round_mixing(edges, weights, active=(True, True, True)):
    return RoundMixing(
        np.array(edges, dtype=np.int64).reshape(-1, 2), np.array(weights, dtype=float), np.array(active)
    )


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (round_mixing([(0, 1)], [-0.1]), "peer 1 has a weight that is not at least 0"),
        (round_mixing([(0, 1)], [math.nan]), "peer 1 has a weight that is not at least 0"),
        (round_mixing([(0, 1), (1, 2)], [0.6, 0.6]), "peer 2 has weights that do not sum to 1"),
        (round_mixing([(1, 2)], [0.5], (True, True, False)), "peer 3 takes no part, but has a link"),
    ],
)
def test_a_broken_matrix_is_refused_and_says_where(broken, message):
    with pytest.raises(ValueError, match=message):
        check_mixing(broken)


def test_a_matrix_that_is_not_symmetric_is_refused():
    broken = round_mixing([(0, 1)], [0.5])
    rows, columns, weights = broken.entries
    object.__setattr__(broken, "entries", (rows, columns, np.where(rows == 0, weights, [0.25] * len(rows))))
    with pytest.raises(ValueError, match="peer 1 has a weight that its neighbour does not have for it"):
        check_mixing(broken)


# How fast


@pytest.mark.parametrize("peers", [3, 4, 5, 10, 31])
def test_gap_of_the_ring(peers):
    """The matrix is circulant with 1/3 on three diagonals: λ_k = (1 + 2 cos(2πk/N)) / 3."""
    others = [(1 + 2 * math.cos(2 * math.pi * k / peers)) / 3 for k in range(1, peers)]
    assert spectral_gap(build_topology("ring", peers, 0)) == pytest.approx(1 - max(map(abs, others)))


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_gap_of_the_hypercube(bits):
    """With weights 1 / (n + 1) the eigenvalues are 1 − 2k / (n + 1), k = 0 ... n."""
    assert spectral_gap(build_topology("hypercube", 2**bits, 0)) == pytest.approx(
        min(2 / (bits + 1), 1 - abs(1 - 2 * bits / (bits + 1)))
    )


def test_gap_of_the_complete_graph_is_1_and_of_a_star_1_over_n():
    assert spectral_gap(build_topology("complete", 9, 0)) == pytest.approx(1)
    assert spectral_gap(build_topology("star", 9, 0)) == pytest.approx(1 / 9)


def test_a_round_shrinks_the_distance_from_the_mean_as_the_gap_says():
    topology = build_topology("random_regular:d=4", 30, 1)
    w, gap = mixing(topology, 0, 1).dense(), spectral_gap(topology)
    x = np.random.default_rng(0).normal(size=30)
    for _ in range(5):
        after = w @ x
        assert np.linalg.norm(after - x.mean()) <= (1 - gap) * np.linalg.norm(x - x.mean()) + 1e-12
        x = after


def test_no_gap_is_computed_for_very_many_peers():
    assert spectral_gap(build_topology("ring", 2001, 0)) is None


# Graphs that vary


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 4])
def test_one_peer_exponential_has_the_exact_mean_after_log2_n_rounds(bits, first):
    topology = build_topology("one_peer_exponential", 2**bits, 0)
    assert topology.varies and topology.exact_after == bits
    product = np.eye(2**bits)
    for round_ in range(first, first + bits):
        assert (product != 2.0**-bits).any()
        product = mixing(topology, round_, 0).dense() @ product
    assert (product == 2.0**-bits).all()


def test_one_peer_exponential_meets_at_distances_1_2_4_and_again():
    topology = build_topology("one_peer_exponential", 8, 0)
    partners = [{int(j - i) for i, j in mixing(topology, round_, 0).edges} for round_ in range(4)]
    assert partners == [{1}, {2}, {4}, {1}]


@settings(deadline=None)
@given(peers=st.integers(2, 21), seed=st.integers(0, 99), round_=st.integers(0, 99))
def test_random_pairs_leave_one_alone_at_most(peers, seed, round_):
    met = mixing(build_topology("random_pairs", peers, seed), round_, seed)
    assert len(met.edges) == peers // 2 and met.degrees.max() == 1
    assert (met.edges[:, 0] < met.edges[:, 1]).all() and (np.diff(met.edges[:, 0]) > 0).all()
    assert met.active.all(), "who stays alone trains all the same"


def test_random_pairs_are_fresh_in_each_round_and_depend_on_seed_and_round():
    topology = build_topology("random_pairs", 20, 3)
    of = [mixing(topology, round_, 3).edges.tolist() for round_ in (0, 1, 1)]
    assert of[0] != of[1] == of[2] != mixing(topology, 1, 4).edges.tolist()


@pytest.mark.parametrize(
    ("name", "peers", "rounds", "error"),
    [("one_peer_exponential", 16, 4, 1e-9), ("random_pairs", 6, 1000, 0.06), ("random_pairs", 5, 1000, 0.06)],
)
def test_the_gap_of_a_graph_that_varies_is_that_of_its_mean_matrix(name, peers, rounds, error):
    topology = build_topology(name, peers, 0)
    mean = sum(mixing(topology, round_, 0).dense() for round_ in range(rounds)) / rounds
    rising = np.linalg.eigvalsh(mean)
    assert spectral_gap(topology) == pytest.approx(1 - max(-rising[0], rising[-2]), abs=error)
