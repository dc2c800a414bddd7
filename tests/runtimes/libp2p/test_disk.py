"""What a peer keeps on its disk: the disk is full, or a file is not as it was written."""

import json

import pytest
import torch
from full_disk import files_up_to
from peer_network import Network, row_of

from fedloom.commands.audit import run_audit
from fedloom.errors import UserError
from fedloom.runs.files import CannotWrite, replace_tensors
from fedloom.runtimes.libp2p.journal import JOURNAL_FILE, Journal
from fedloom.runtimes.libp2p.peer_store import PeerStore


@pytest.mark.parametrize("room", [0, 40, 130])
def test_a_full_disk_is_no_neighbour_lost_and_loses_nothing(tmp_path, caplog, room):
    peers = Network(tmp_path, {1: [2], 2: [1]}, timeout=3.0)
    before = peers.total()
    try:
        nodes = peers.nodes()
        peers.play(nodes, 1)
        kept = dict(peers.rows)
        largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        with (
            files_up_to(largest + room),
            pytest.raises(CannotWrite, match=r"exchange/.* cannot be written \(File too large\)"),
        ):
            peers.play(nodes, 2)
        assert "not heard" not in caplog.text and "late" not in caplog.text
        for number, node in nodes.items():
            peers.kill(number, node)
        peers.rows = kept
        nodes = {number: peers.revive(number) for number in nodes}
        peers.timeout = 5.0
        for round_ in (2, 3, 4):
            peers.play(nodes, round_)
        peers.finish(nodes)
        torch.testing.assert_close(peers.total(), before, rtol=0, atol=1e-5)
        assert run_audit(peers.folders())
    finally:
        peers.close()


def written(folder):
    journal = Journal(folder)
    journal.write("peer", client=1, clients=2, neighbors=[2], run="run")
    journal.ready((1, 2), 0.5)
    journal.decide((1, 2), True, 0.5)
    journal.write("mixed", round=1, row={"2": 0.5}, own=0.5, late=[], in_doubt=[], missed=0)
    journal.close()
    return folder / JOURNAL_FILE


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"event"', b'"evnt"', 1),
        lambda text: text.replace(b'"peer": 2', b'"peer": [2]'),
        lambda text: text.replace(b'"late": []', b'"late": 3'),
        lambda text: text.replace(b'"row": {"2"', b'"row": {"x"'),
        lambda text: b"[]\n" + text,
        lambda text: b"null\n",
        lambda text: text[:40] + b"\xff\xfe" + text[41:],
        lambda text: text[:30] + b"\n" + text[30:],
        lambda text: b"[" * 100_000 + b"\n",
    ],
)
def test_a_damaged_journal_is_named(tmp_path, damage):
    path = written(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path} is not as fedloom wrote it .* another --exp_name"):
        Journal(tmp_path)
    with pytest.raises(UserError, match="journal"):
        run_audit([str(tmp_path)])


def test_a_line_that_a_killed_peer_left_half_written_is_none(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "mix')
    Journal(tmp_path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("keep", [0, 7, 40, -3])
def test_a_damaged_row_is_named(tmp_path, keep):
    store = PeerStore(tmp_path)
    store.save_trained(3, row_of(1), {"drawn": [4]}, 0.0)
    store.save_heard((3, 2), row_of(2))
    for path in store.folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"trained-000003\.safetensors is not as fedloom wrote it"):
        store.load_trained(3)
    with pytest.raises(UserError, match=r"heard-000003-0002\.safetensors is not as"):
        store.heard((3, 2))


def test_what_training_leaves_must_say_how_far_it_is(tmp_path):
    store = PeerStore(tmp_path)
    replace_tensors(store.folder / "trained-000003.safetensors", row_of(1), {"state": json.dumps([])[1:]})
    with pytest.raises(UserError, match="trained-000003"):
        store.load_trained(3)


def test_nobody_else_sees_rows_of_neighbours(tmp_path):
    assert PeerStore(tmp_path).folder.stat().st_mode & 0o077 == 0
