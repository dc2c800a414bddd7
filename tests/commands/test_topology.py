"""What `fedloom topology` prints and draws."""

import sys

import pytest

from fedloom.commands.topology import draw, run_topology
from fedloom.errors import UserError
from fedloom.federation.topology import build_topology


def shown(capsys, name, peers, adapter_bytes=None, output=None, seed=0):
    """What is printed, blanks and rules of the tables reduced to one blank each."""
    run_topology(name=name, num_clients=peers, seed=seed, adapter_bytes=adapter_bytes, output=output)
    out = capsys.readouterr().out
    return " ".join("".join(c if c.isprintable() and not "─" <= c <= "╿" else " " for c in out).split())


def test_a_graph_in_numbers(capsys):
    out = shown(capsys, "du14", 7, adapter_bytes=1_000_000)
    assert "7 peers" in out and "du14" in out
    assert "links 7 " in out
    assert "links of a peer 1 to 3, mean 2 " in out
    assert "peer by peer 2 2 3 2 2 2 1 " in out
    assert "spectral gap 0.0" in out
    assert "adapters sent per round 14 " in out
    assert "bytes sent per round 14000000 (14.0 MB)" in out


def test_the_mixing_matrix_of_few_peers(capsys):
    out = shown(capsys, "line", 3)
    assert "mixing matrix" in out
    assert "1 0.667 0.333 · 2 0.333 0.333 0.333 3 · 0.333 0.667" in out
    assert "bytes" not in out
    assert "mixing matrix" not in shown(capsys, "line", 30)


def test_peers_that_all_have_as_many_links_are_not_listed(capsys):
    out = shown(capsys, "ring", 20)
    assert "links of a peer 2 " in out and "peer by peer" not in out


def test_many_peers_are_not_listed(capsys):
    assert "peer by peer" in shown(capsys, "line", 32) and "peer by peer" not in shown(capsys, "line", 33)
    out = shown(capsys, "ring", 2001)
    assert "not computed for more than 2000 peers" in out


def test_a_graph_that_varies_shows_its_first_round(capsys):
    out = shown(capsys, "one_peer_exponential", 8)
    assert "links in a round 4 " in out and "spectral gap of the mean matrix 0.3333" in out
    assert "exact mean after 3 rounds" in out and "mixing matrix of the first round" in out


def test_peers_that_never_agree(capsys, tmp_path):
    """A ring of four in which nobody keeps anything: evens and odds change places for ever."""
    (tmp_path / "w").write_text("0 .5 0 .5\n.5 0 .5 0\n0 .5 0 .5\n.5 0 .5 0\n")
    assert "0: these peers never agree" in shown(capsys, f"file:{tmp_path / 'w'}", 4)


def test_a_name_with_brackets_is_no_markup(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[red]g").write_text("1 2\n")
    assert "file:[red]g" in shown(capsys, "file:[red]g", 2)


KINDS = [
    ("ring", 7),
    ("star", 5),
    ("line", 9),
    ("grid", 12),
    ("torus", 9),
    ("hypercube", 16),
    ("complete", 400),
    ("one_peer_exponential", 64),
    ("random_pairs", 9),
]


@pytest.mark.parametrize(("name", "peers"), KINDS)
def test_every_peer_has_a_place_of_its_own_and_every_link_a_line(name, peers):
    pytest.importorskip("matplotlib")
    topology = build_topology(name, peers, 0)
    [axes] = draw(topology, 0, 0.5).axes
    *lines, dots = axes.collections
    places = {tuple(place) for place in dots.get_offsets().round(6).tolist()}
    assert len(places) == peers
    assert axes.get_title() == f"{name}: {peers} peers, spectral gap 0.5"
    if topology.static is not None:
        [collection] = lines
        assert len(collection.get_segments()) == len(topology.static.edges)
    else:
        assert [c.get_label() for c in lines][:3] == ["round 1", "round 2", "round 3"]


def test_the_layout_depends_on_the_seed_alone():
    pytest.importorskip("matplotlib")
    topology = build_topology("torus", 9, 0)
    one, same = (draw(topology, 2**40, None).axes[0].collections[-1].get_offsets() for _ in range(2))
    assert (one == same).all()


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_a_picture_is_drawn_where_asked(capsys, tmp_path, ending, begins):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / f"graph.{ending}"
    assert f"Drawn to {path}" in shown(capsys, "link4", 7, output=str(path))
    assert path.read_bytes().startswith(begins)


def test_a_picture_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"output: .*graph.bmp is not a .png or .svg file"):
        run_topology(
            name="ring", num_clients=3, seed=0, adapter_bytes=None, output=str(tmp_path / "graph.bmp")
        )


def test_a_picture_that_cannot_be_written(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*choose another place"):
        shown(capsys, "ring", 3, output=str(tmp_path / "file" / "graph.png"))


def test_without_matplotlib_only_a_picture_is_refused(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "spectral gap" in shown(capsys, "ring", 3)
    with pytest.raises(UserError, match=r"matplotlib is missing; pip install 'fedloom\[plots\]'"):
        shown(capsys, "ring", 3, output="graph.png")


def test_a_graph_that_does_not_exist():
    with pytest.raises(UserError, match="choose --num_clients 7"):
        run_topology(name="link5", num_clients=8, seed=0, adapter_bytes=None, output=None)
