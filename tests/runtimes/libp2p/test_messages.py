"""Messages between peers: whatever arrives is a message of this run, or refused. And whom a peer talks to."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_network import VOICES, header_of, row_of
from safetensors.torch import save

from fedloom.commands.cli import main
from fedloom.errors import UserError
from fedloom.runtimes.libp2p.messages import MAGIC, PREFIX, Expected, Message, choice, decode, encode
from fedloom.runtimes.libp2p.neighbors import read_neighbors
from fedloom.runtimes.libp2p.polls import vote
from fedloom.runtimes.libp2p.run_name import run_name
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema

ROW = row_of(1)
EXPECTED = Expected("a run", Schema.of(ROW), rounds=8, clients=5, layers=({"a"}, {"b"}))
SAID = VOICES[2].say(3, hashlib.sha256(EXPECTED.schema.pack(ROW)).hexdigest(), "")
OFFER = Message("offer", sender=2, round=3, at=3, degree=2, row=ROW, said=SAID)
DECISION = Message("decision", sender=2, round=3, at=4, degree=2, verdict="commit")
VOTE = Message("vote", sender=2, round=3, at=3, degree=2, layers=vote([0.25, 0.75]))
FRAMES = [encode(message, EXPECTED) for message in (OFFER, DECISION, VOTE)]


def refused(frame, **how):
    """Why a frame of peer 2 is refused."""
    with pytest.raises(MessageRefused) as told:
        decode(frame, EXPECTED, sender=2, **how)
    return told.value.kind


def framed(header, body):
    head = json.dumps(header).encode()
    return PREFIX.pack(MAGIC, len(head), len(body)) + head + body


def told(body):
    """An offer with any body, and its hash."""
    header = header_of(FRAMES[0])
    return framed(header | {"said": [hashlib.sha256(body).hexdigest(), *header["said"][1:]]}, body)


def test_what_is_encoded_is_decoded():
    found = decode(FRAMES[0], EXPECTED, sender=2)
    assert (found.kind, found.round, found.degree, found.said) == ("offer", 3, 2, SAID)
    assert found.row.keys() == ROW.keys() and all(torch.equal(found.row[name], ROW[name]) for name in ROW)
    assert decode(FRAMES[1], EXPECTED, sender=2) == DECISION
    assert decode(FRAMES[2], EXPECTED, sender=2) == VOTE


def test_a_row_of_some_layers_has_these_and_no_others():
    part = {"b": ROW["b"]}
    body = Schema.of(part).pack(part)
    said = VOICES[2].say(3, hashlib.sha256(body).hexdigest(), "")
    offer = replace(OFFER, row=part, said=said, layers=choice([False, True]))
    found = decode(encode(offer, EXPECTED), EXPECTED, sender=2)
    assert found.row.keys() == {"b"} and torch.equal(found.row["b"], ROW["b"])
    header = header_of(encode(offer, EXPECTED))
    assert refused(framed(header | {"layers": choice([True, False])}, body)) == "shape"
    assert refused(framed(header | {"layers": "ff"}, body)) == "format"
    assert refused(framed(header_of(FRAMES[1]) | {"layers": "80"}, b"")) == "format"


def test_a_row_of_several_dtypes_comes_back_as_it_was():
    row = {"half": torch.ones(3, dtype=torch.bfloat16), **ROW, "none": torch.zeros(0, 4)}
    schema = Schema.of(row)
    found = schema.unpack(schema.pack(row))
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in row.items())


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_and_nothing_worse(frame):
    with pytest.raises(MessageRefused):
        decode(frame, EXPECTED, sender=2)
    with pytest.raises(MessageRefused):
        EXPECTED.schema.unpack(frame)


@settings(deadline=None)
@given(header=st.binary(max_size=300), body=st.binary(max_size=300))
def test_any_header_and_body_are_refused_and_nothing_worse(header, body):
    with pytest.raises(MessageRefused):
        decode(PREFIX.pack(MAGIC, len(header), len(body)) + header + body, EXPECTED, sender=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(FRAMES), st.sampled_from(sorted(header_of(FRAMES[0]))), JSON)
def test_any_value_in_a_header_is_a_message_or_refused(frame, name, value):
    header = header_of(frame)
    body = frame[PREFIX.size + len(json.dumps(header, separators=(",", ":"))) :]
    with suppress(MessageRefused):
        assert decode(framed(header | {name: value}, body), EXPECTED, sender=2).sender == 2


@settings(deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_a_message_that_was_changed_on_the_way_is_a_message_or_refused(frame, data):
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if what == "flip":
            changed[place] ^= data.draw(st.integers(1, 255))
        elif what == "insert":
            changed[place:place] = data.draw(st.binary(max_size=20))
        elif what == "cut":
            del changed[place : place + data.draw(st.integers(1, 20))]
        else:
            del changed[place:]
        changed = changed or bytearray(b"x")
    try:
        found = decode(bytes(changed), EXPECTED, sender=2)
    except MessageRefused:
        return
    assert found.row is None or all(t.isfinite().all() for t in found.row.values())


def test_what_is_wrong_with_a_message_is_named():
    header, row = header_of(FRAMES[0]), Schema.of(ROW).pack(ROW)
    assert refused(framed(header | {"run": "another"}, row)) == "run"
    assert refused(framed(header | {"schema": "another"}, row)) == "schema"
    assert refused(framed(header | {"sender": 3}, row)) == "sender"
    assert refused(framed(header | {"round": 9}, row)) == "round"
    assert refused(framed(header | {"more": 1}, row)) == "format"
    assert refused(framed(header | {"round": True}, row)) == "format"
    assert refused(FRAMES[0] + b"x") == "format"
    assert refused(FRAMES[0], oldest=4) == "old_round"
    assert refused(framed(header, b"")) == "format"
    assert refused(framed(header_of(FRAMES[1]), row)) == "format"
    assert refused(framed(header | {"said": None}, row)) == "format"
    assert refused(framed(header | {"said": ["", 1, "", ""]}, row)) == "format"
    assert refused(framed(header, Schema.of(ROW).pack(row_of(2)))) == "hash"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            run_name("options", "w2", "t1"),
            "the sender has other base weights; give both peers",
        ),
        (run_name("options", "w1", "t2"), "the sender has another tokenizer;"),
        (run_name("options", "w2", "t2"), "other base weights and another tokenizer"),
        (run_name("others", "w2", "t1"), "it belongs to another run; compare the options"),
        ("...", "it belongs to another run"),
        ("", "it belongs to another run"),
    ],
)
def test_a_neighbour_with_another_base_is_told_so(other, said):
    here = replace(EXPECTED, run=run_name("options", "w1", "t1"))
    with pytest.raises(MessageRefused, match=said):
        decode(encode(DECISION, replace(here, run=other)), here, sender=2)


@pytest.mark.parametrize(
    ("flat", "kind"),
    [
        ({"float32": torch.zeros(14)}, "shape"),
        ({"float32": torch.zeros(15, 1)}, "shape"),
        ({"float32": torch.zeros(15, dtype=torch.float16)}, "dtype"),
        ({"weights": torch.zeros(15)}, "names"),
        ({"float32": torch.full((15,), torch.nan)}, "not_finite"),
        ({"float32": torch.full((15,), torch.inf)}, "not_finite"),
        ({"float32": torch.full((15,), 3e38)}, "not_finite"),
        ({"float32": torch.zeros(10_000)}, "oversized"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(flat, kind):
    assert refused(told(save(flat))) == kind


def test_a_header_that_would_take_all_memory_is_never_parsed():
    body = (2**62).to_bytes(8, "little") + b"{}" + bytes(60)
    assert refused(told(body)) == "format"


NEIGHBOR = {"client": 2, "id": "Qm" + "a" * 44, "addresses": ["/ip4/127.0.0.1/tcp/4002"]}


def test_a_neighbour_file_gives_neighbours_by_number(tmp_path):
    file = tmp_path / "neighbors.yaml"
    other = {"client": 1, "id": "Qm" + "b" * 44, "addresses": "/dns4/host.example/tcp/4001"}
    file.write_text(yaml.safe_dump([NEIGHBOR, other]))
    found = read_neighbors(file, 3, 3)
    assert list(found) == [1, 2] and found[1].addresses == ("/dns4/host.example/tcp/4001",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot be read"]),
        ("[", ["is not YAML"]),
        ("client: 2", ["must be a list"]),
        ([{**NEIGHBOR, "adress": 1}], ["adress", "did you mean addresses?"]),
        ([{"client": 2, "id": NEIGHBOR["id"]}], ["addresses is missing"]),
        ([NEIGHBOR | {"client": 9}], ["9", "1 to 5"]),
        ([NEIGHBOR | {"client": "two"}], ["two"]),
        ([NEIGHBOR | {"client": 3}], ["client 3", "this peer"]),
        ([NEIGHBOR | {"id": "me"}], ["me", "fedloom identity"]),
        ([NEIGHBOR | {"addresses": "127.0.0.1:4002"}], ["127.0.0.1:4002", "/ip4/HOST/tcp/PORT"]),
        ([NEIGHBOR | {"addresses": []}], ["addresses is empty"]),
        ([NEIGHBOR, NEIGHBOR | {"addresses": "/ip4/10.0.0.1/tcp/1"}], ["twice"]),
    ],
)
def test_a_mistake_in_a_neighbour_file_is_told(tmp_path, content, words):
    file = tmp_path / "neighbors.yaml"
    if content is not None:
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(UserError) as told:
        read_neighbors(file, 3, 5)
    assert all(word in str(told.value) for word in words), str(told.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("peer --model_checkpoint m", "identity: is required"),
        ("peer --model_checkpoint m --identity k", "neighbors: is required"),
        ("peer --identity k --neighbors n", "model_checkpoint: is required"),
        ("peer --model_checkpoint m --identity k --neighbors n --client 9", "client: 9"),
        ("peer --model_checkpoint m --identity k --neighbors n --round_timeout 0", "round_timeout: 0"),
        ("peer --model_checkpoint m --identity k --neighbors n --listen 4001", "4001"),
        ("audit", "none given"),
        ("audit nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(words, said, capsys):
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err
