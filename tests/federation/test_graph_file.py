"""Graphs from files."""

import numpy as np
import pytest

from fedloom.errors import UserError
from fedloom.federation.matrix import check_mixing
from fedloom.federation.topology import build_topology, spectral_gap


def from_file(tmp_path, text, peers):
    path = tmp_path / "graph.txt"
    path.write_text(text)
    return build_topology(f"file:{path}", peers, 0).static


def test_a_file_with_links(tmp_path):
    whole = from_file(tmp_path, "# a line\n1 2\n\n3, 2  # the other way round\n2 1\n", 3)
    assert whole.edges.tolist() == [[0, 1], [1, 2]]
    assert (whole.dense() == build_topology("line", 3, 0).static.dense()).all()


def test_a_file_with_an_adjacency_matrix(tmp_path):
    whole = from_file(tmp_path, "0 1 0\n1 1 1\n0 1 0\n", 3)
    assert (whole.dense() == build_topology("line", 3, 0).static.dense()).all(), (
        "the diagonal does not matter"
    )


def test_a_file_with_a_mixing_matrix(tmp_path):
    whole = from_file(tmp_path, "0.9,0.1,0\n0.1,0.5,0.4\n0,0.4,0.6\n", 3)
    np.testing.assert_allclose(whole.dense(), [[0.9, 0.1, 0], [0.1, 0.5, 0.4], [0, 0.4, 0.6]], atol=1e-15)


def test_a_rounded_matrix_becomes_an_exact_one(tmp_path):
    """No peer keeps anything, and 0.3333334 three times is more than 1."""
    rows = ["0 .3333334 .3333334 .3333334", ".3333334 0 .3333334 .3333334"]
    rows += [".3333334 .3333334 0 .3333334", ".3333334 .3333334 .3333334 0"]
    whole = from_file(tmp_path, "\n".join(rows), 4)
    check_mixing(whole)
    np.testing.assert_allclose(whole.dense(), (1 - np.eye(4)) / 3, atol=1e-9)


def test_the_gap_counts_the_lowest_eigenvalue_too(tmp_path):
    """In a ring of four in which nobody keeps anything, evens and odds change places for ever."""
    (tmp_path / "swap.txt").write_text("0 .5 0 .5\n.5 0 .5 0\n0 .5 0 .5\n.5 0 .5 0\n")
    assert spectral_gap(build_topology(f"file:{tmp_path / 'swap.txt'}", 4, 0)) == pytest.approx(0)


def test_two_lines_of_two_numbers_for_two_peers_are_a_matrix(tmp_path):
    assert (from_file(tmp_path, "0.75 0.25\n0.25 0.75\n", 2).dense() == [[0.75, 0.25], [0.25, 0.75]]).all()
    assert (from_file(tmp_path, "0 1\n1 0\n", 2).dense() == 0.5).all()
    assert (from_file(tmp_path, "1 2\n", 2).dense() == 0.5).all()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "write a link in every line"]),
        ("1 2\n2 three\n", ["line 2", "'2 three' is not a row of numbers"]),
        ("1 2\n2 3\n3 0\n", ["line 3: 0 is not a peer", "1 to 3"]),
        ("1 2\n2 4\n", ["line 2: 4 is not a peer", "1 to 3"]),
        ("1 2\n2 1.5\n", ["line 2: 1.5 is not a peer"]),
        ("1 2\n3 3\n", ["line 2: peer 3 is linked to itself"]),
        ("1 2\n", ["2 parts", "peers 1-2; 3", "add links"]),
        ("0 1\n1 0 1\n", ["2 lines of 2 or 3 numbers", "num_clients is 3", "3 lines of 3 numbers"]),
        ("0 1 0 0\n" * 4, ["4 lines of 4 numbers", "num_clients is 3"]),
        ("0 1 0\n1 0 1\n0 0 0\n", ["row 2, column 3 is 1, but row 3, column 2 is 0", "symmetric"]),
        (".5 .5 0\n.4 .5 .1\n0 .1 .9\n", ["row 1, column 2 is 0.5, but row 2, column 1 is 0.4"]),
        ("1.5 -.5 0\n-.5 1.5 0\n0 0 1\n", ["row 1, column 2 is -0.5", "at least 0"]),
        ("nan 0 0\n0 1 0\n0 0 1\n", ["row 1, column 1 is nan", "at least 0"]),
        (".5 .5 0\n.5 .4 0\n0 0 1\n", ["the weights of peer 2 sum to 0.9", "must sum to 1"]),
        (".5 .5 0\n.5 .5 0\n0 0 1\n", ["2 parts", "peers 1-2; 3"]),
    ],
)
def test_a_file_that_will_not_do(tmp_path, text, parts):
    with pytest.raises(UserError) as error:
        from_file(tmp_path, text, 3)
    assert str(tmp_path / "graph.txt") in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.txt' cannot be read \(No such file.*Give the path of a graph"):
        build_topology(f"file:{tmp_path / 'none.txt'}", 3, 0)
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="line 1: is not UTF-8 text"):
        build_topology(f"file:{tmp_path / 'picture'}", 3, 0)
